//! The service manager: `sd_notify(3)` and its watchdog, where systemd has started the agent.
//!
//! Messages are datagrams to the socket that `NOTIFY_SOCKET` names. Oracle: a socket of the tests
//! (tests/live/service.rs).

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

/// How long a message may wait for room in the manager's socket.
const PATIENCE: Duration = Duration::from_secs(1);

/// The service manager. Without one, messages go nowhere.
#[derive(Debug, Default)]
pub struct Manager {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Manager {
    /// The manager that the environment names.
    ///
    /// # Errors
    ///
    /// When the variables can't be used: one line that says which.
    pub fn from_environment() -> Result<Self, String> {
        Self::new(|name| std::env::var_os(name), std::process::id())
    }

    fn new(variable: impl Fn(&str) -> Option<OsString>, pid: u32) -> Result<Self, String> {
        let Some(path) = variable("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else {
            return Ok(Self::default());
        };
        let failed = |error: io::Error| format!("NOTIFY_SOCKET={}: {error}", path.display());
        let address = address(&path).map_err(failed)?;
        let socket = UnixDatagram::unbound().map_err(failed)?;
        socket.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        let number = |name: &str| {
            let Some(text) = variable(name) else {
                return Ok(None);
            };
            let parsed = text.to_str().and_then(|text| text.parse::<u64>().ok());
            let wrong = || format!("{name}={} is not a number", text.display());
            parsed.map(Some).ok_or_else(wrong)
        };
        // A watchdog that is meant for another process was only inherited.
        let ours = number("WATCHDOG_PID")?.is_none_or(|found| found == u64::from(pid));
        let micros = number("WATCHDOG_USEC")?.filter(|&micros| ours && micros > 0);
        Ok(Self {
            socket: Some((socket, address)),
            watchdog: micros.map(Duration::from_micros),
        })
    }

    /// The agent serves.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// The agent is reading its settings again. To be followed by [`ready`](Self::ready).
    pub fn reloading(&self, monotonic_ns: u64) {
        self.send(&format!(
            "RELOADING=1\nMONOTONIC_USEC={}",
            monotonic_ns / 1_000
        ));
    }

    /// The agent is about to end.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// The agent is alive.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// Why the agent does not say that it is alive.
    pub fn status(&self, text: &str) {
        self.send(&format!("STATUS={}", text.replace('\n', " ")));
    }

    /// How often the manager wants to hear that the agent is alive, with time to spare: a third of
    /// the time after which it would act. `None` if it does not watch.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 3)
    }

    fn send(&self, message: &str) {
        let Some((socket, address)) = &self.socket else {
            return;
        };
        if let Err(error) = socket.send_to_addr(message.as_bytes(), address) {
            let what = message.split('\n').next().unwrap_or_default();
            tracing::warn!(%error, message = what, "the service manager could not be told");
        }
    }
}

/// Path of a socket, or a name in Linux's abstract namespace.
fn address(path: &OsStr) -> io::Result<SocketAddr> {
    match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(path),
        _ => Err(io::Error::other(
            "expected an absolute path, or @ and a name",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(variables: &[(&str, &str)]) -> Result<Manager, String> {
        let find = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Manager::new(find, 7)
    }

    #[test]
    fn messages_reach_a_socket_of_either_kind() {
        let path = std::env::temp_dir().join(format!("cgmeter-notify-{}", std::process::id()));
        let name = format!("cgmeter-notify-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        for (socket, named) in [
            (
                UnixDatagram::bind(&path).unwrap(),
                path.display().to_string(),
            ),
            (
                UnixDatagram::bind_addr(&abstract_address).unwrap(),
                format!("@{name}"),
            ),
        ] {
            let manager = manager(&[("NOTIFY_SOCKET", &named)]).unwrap();
            manager.ready();
            manager.reloading(5_000_999);
            manager.status("a\nb");
            socket
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            for expected in ["READY=1", "RELOADING=1\nMONOTONIC_USEC=5000", "STATUS=a b"] {
                let mut buffer = [0; 128];
                let length = socket.recv(&mut buffer).unwrap();
                assert_eq!(&buffer[..length], expected.as_bytes());
            }
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn the_watchdog_of_another_process_is_not_ours() {
        let watchdog = |variables: &[(&str, &str)]| {
            let mut all = vec![("NOTIFY_SOCKET", "/run/x")];
            all.extend_from_slice(variables);
            manager(&all).map(|manager| manager.watchdog())
        };
        assert_eq!(watchdog(&[]), Ok(None));
        let usec = ("WATCHDOG_USEC", "30000000");
        assert_eq!(watchdog(&[usec]), Ok(Some(Duration::from_secs(10))));
        let ours = ("WATCHDOG_PID", "7");
        assert_eq!(watchdog(&[usec, ours]), Ok(Some(Duration::from_secs(10))));
        assert_eq!(watchdog(&[usec, ("WATCHDOG_PID", "8")]), Ok(None));
        assert_eq!(watchdog(&[("WATCHDOG_USEC", "0")]), Ok(None));
        assert_eq!(
            watchdog(&[("WATCHDOG_USEC", "soon")]),
            Err("WATCHDOG_USEC=soon is not a number".to_owned())
        );
    }

    #[test]
    fn no_manager_and_a_strange_one() {
        assert!(manager(&[]).unwrap().socket.is_none());
        assert!(manager(&[("NOTIFY_SOCKET", "")]).unwrap().socket.is_none());
        manager(&[]).unwrap().ready();
        let error = manager(&[("NOTIFY_SOCKET", "run/x")]).unwrap_err();
        assert!(error.contains("NOTIFY_SOCKET=run/x: expected an absolute path"));
        let error = manager(&[("NOTIFY_SOCKET", &format!("/{}", "x".repeat(200)))]);
        assert!(error.unwrap_err().starts_with("NOTIFY_SOCKET=/xxx"));
    }
}
