//! The ports of the demo's parts, and their configuration files.
//!
//! Invariant: every address is on loopback. The shipped rules are used unchanged, except for how long an
//! alert waits.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::shell::root;

/// How long alerts wait here before they fire.
pub const WAIT: &str = "15s";

/// Where the parts listen.
pub struct Ports {
    pub agent: u16,
    pub prometheus: u16,
    pub alertmanager: u16,
    pub shop: u16,
    pub webhook: u16,
}

impl Ports {
    /// The usual ports, or free ones where those are in use.
    pub fn choose() -> Result<Self> {
        // The listeners are held until all ports are chosen, so that no two are the same.
        let mut held = Vec::new();
        let mut choose = |usual: u16| -> Result<u16> {
            let listener = TcpListener::bind(("127.0.0.1", usual))
                .or_else(|_| TcpListener::bind("127.0.0.1:0"))
                .context("no port is free")?;
            let port = listener.local_addr()?.port();
            held.push(listener);
            Ok(port)
        };
        Ok(Self {
            agent: choose(10295)?,
            prometheus: choose(9090)?,
            alertmanager: choose(9093)?,
            shop: choose(8080)?,
            webhook: choose(9095)?,
        })
    }
}

/// The folder with the parts' files and data, which is removed on drop.
pub struct Folder(PathBuf);

impl Folder {
    /// Writes the files.
    pub fn new(ports: &Ports) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("cgmeter-demo-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        let folder = Self(path);
        folder.write("prometheus.yml", &prometheus(ports))?;
        folder.write("alertmanager.yml", &alertmanager(ports))?;
        let rules = folder.0.join("rules");
        fs::create_dir(&rules)?;
        let shipped = root().join("deploy/prometheus/rules");
        let entries =
            fs::read_dir(&shipped).with_context(|| format!("reading {}", shipped.display()))?;
        for entry in entries {
            let file = entry?.path();
            let name = file.file_name().unwrap_or_default();
            let text =
                fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            fs::write(rules.join(name), impatient(&text))?;
        }
        Ok(folder)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.0.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!(
                "xtask: warning: {} can't be removed: {error}",
                self.0.display()
            );
        }
    }
}

/// The rules, with every `for` set to [`WAIT`].
fn impatient(rules: &str) -> String {
    let line = |line: &str| match line.split_once("for: ") {
        Some((before, _)) if before.trim().is_empty() => format!("{before}for: {WAIT}\n"),
        _ => format!("{line}\n"),
    };
    rules.lines().map(line).collect()
}

fn prometheus(ports: &Ports) -> String {
    let Ports {
        agent,
        prometheus,
        alertmanager,
        shop,
        ..
    } = ports;
    format!(
        "global:
  scrape_interval: 5s
  scrape_timeout: 5s
  evaluation_interval: 5s
  external_labels: {{cluster: demo}}
rule_files: ['rules/*.yml']
alerting:
  alertmanagers:
  - static_configs:
    - targets: ['127.0.0.1:{alertmanager}']
scrape_configs:
- job_name: cgmeter
  static_configs:
  - targets: ['127.0.0.1:{agent}']
- job_name: prometheus
  static_configs:
  - targets: ['127.0.0.1:{prometheus}']
- job_name: alertmanager
  static_configs:
  - targets: ['127.0.0.1:{alertmanager}']
- job_name: shop
  static_configs:
  - targets: ['127.0.0.1:{shop}']
"
    )
}

fn alertmanager(ports: &Ports) -> String {
    format!(
        "route:
  receiver: demo
  group_by: [alertname]
  group_wait: 1s
  group_interval: 5s
  repeat_interval: 1h
receivers:
- name: demo
  webhook_configs:
  - url: 'http://127.0.0.1:{}/'
    send_resolved: true
",
        ports.webhook
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_wait_less_and_nothing_else_changes() {
        let rules =
            "- alert: A\n  expr: wait_for: 5m\n  for: 10m\n  keep_firing_for: 5m\n# for: 1m\n";
        let wanted =
            "- alert: A\n  expr: wait_for: 5m\n  for: 15s\n  keep_firing_for: 5m\n# for: 1m\n";
        assert_eq!(impatient(rules), wanted);
    }

    #[test]
    fn a_taken_port_is_avoided() {
        let first = Ports::choose().unwrap();
        let _taken = TcpListener::bind(("127.0.0.1", first.shop));
        let second = Ports::choose().unwrap();
        assert_ne!(first.shop, second.shop);
        let all = [
            second.agent,
            second.prometheus,
            second.alertmanager,
            second.shop,
            second.webhook,
        ];
        assert!((0..5).all(|n| !all[..n].contains(&all[n])));
    }
}
