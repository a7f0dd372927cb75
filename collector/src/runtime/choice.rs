//! `--container.runtime`: which runtimes are followed, and where they listen.

use std::{
    collections::BTreeMap,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use super::descriptor::Descriptor;

/// One value of the flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeChoice {
    /// Every runtime whose socket is there.
    Auto,
    /// No runtime.
    None,
    /// One runtime, at this socket or at its usual ones.
    One(&'static Descriptor, Option<PathBuf>),
}

impl FromStr for RuntimeChoice {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (name, socket) = match text.split_once('=') {
            Some((name, url)) => {
                let path = Path::new(url.strip_prefix("unix://").ok_or(())?);
                (
                    name,
                    Some(path.to_owned())
                        .filter(|path| path.is_absolute())
                        .ok_or(())?
                        .into(),
                )
            }
            None => (text, None),
        };
        match (name, &socket) {
            ("auto", None) => Ok(Self::Auto),
            ("none", None) => Ok(Self::None),
            _ => Descriptor::all()
                .find(|runtime| runtime.naming.name == name)
                .map(|runtime| Self::One(runtime, socket))
                .ok_or(()),
        }
    }
}

/// The whole flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice(Vec<RuntimeChoice>);

impl Default for Choice {
    fn default() -> Self {
        Self(vec![RuntimeChoice::Auto])
    }
}

impl Choice {
    /// From the flag's values. `None` if `none` is combined with others.
    pub fn new(words: Vec<RuntimeChoice>) -> Option<Self> {
        (words.len() <= 1 || !words.contains(&RuntimeChoice::None)).then_some(Self(words))
    }

    /// Sockets to follow now: those that the flag names, and usual ones that exist.
    pub fn sockets(&self) -> BTreeMap<PathBuf, &'static Descriptor> {
        let mut found = BTreeMap::new();
        for word in &self.0 {
            match word {
                RuntimeChoice::None => {}
                RuntimeChoice::Auto => {
                    for runtime in Descriptor::all() {
                        found.extend(there(runtime).map(|path| (path, runtime)));
                    }
                }
                RuntimeChoice::One(runtime, Some(path)) => {
                    found.insert(path.clone(), *runtime);
                }
                RuntimeChoice::One(runtime, None) => {
                    let before = found.len();
                    found.extend(there(runtime).map(|path| (path, *runtime)));
                    if found.len() == before && !found.values().any(|other| other == runtime) {
                        let usual = runtime.sockets.first().map(PathBuf::from);
                        found.extend(usual.map(|path| (path, *runtime)));
                    }
                }
            }
        }
        found
    }

    /// Whether the flag names a socket or its runtime.
    pub fn names(&self, socket: &Path) -> bool {
        self.0.iter().any(|word| match word {
            RuntimeChoice::One(_, Some(path)) => path == socket,
            RuntimeChoice::One(runtime, None) => {
                runtime.sockets.iter().any(|path| Path::new(path) == socket)
            }
            _ => false,
        })
    }
}

/// Usual sockets that exist. Symbolic links are resolved, so that each is there once.
fn there(runtime: &Descriptor) -> impl Iterator<Item = PathBuf> {
    runtime.candidates().filter_map(|path| {
        let path = path.canonicalize().ok()?;
        let socket = path.metadata().ok()?.file_type().is_socket();
        socket.then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::descriptor::{crio::CRIO, docker::DOCKER},
        *,
    };

    #[test]
    fn words() {
        let one = |runtime: &'static Descriptor, path: Option<&str>| {
            Ok(RuntimeChoice::One(runtime, path.map(PathBuf::from)))
        };
        for (text, word) in [
            ("auto", Ok(RuntimeChoice::Auto)),
            ("none", Ok(RuntimeChoice::None)),
            ("docker", one(&DOCKER, None)),
            ("crio=unix:///x/y.sock", one(&CRIO, Some("/x/y.sock"))),
            ("podman=unix://x", Err(())),
            ("podman=/x", Err(())),
            ("auto=unix:///x", Err(())),
            ("rkt", Err(())),
            ("", Err(())),
        ] {
            assert_eq!(text.parse(), word, "{text}");
        }
        assert!(Choice::new(vec![RuntimeChoice::None, RuntimeChoice::Auto]).is_none());
    }

    #[test]
    fn a_named_socket_is_followed_before_it_is_there() {
        let path = PathBuf::from("/nonexistent/x.sock");
        let choice = Choice::new(vec![RuntimeChoice::One(&CRIO, Some(path.clone()))]).unwrap();
        assert_eq!(choice.sockets(), [(path.clone(), &CRIO)].into());
        assert!(choice.names(&path));
        assert!(
            Choice::new(vec![RuntimeChoice::None])
                .unwrap()
                .sockets()
                .is_empty()
        );
    }
}
