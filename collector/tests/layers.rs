//! Imports point one way along the way of a number: see ARCHITECTURE.md.
#![allow(clippy::unwrap_used)]

#[path = "layers/circles.rs"]
mod circles;

use std::{
    fs,
    path::{Path, PathBuf},
};

use circles::Crate;

/// Each module of the crate, and the other modules that it may import. Nothing
/// from `kernel` to `web` imports `settings` or `cli`; only main.rs uses `check`, `dump`,
/// `healthcheck` and `reference`.
const LAYERS: &[(&str, &[&str])] = &[
    ("service", &[]),
    ("threads", &[]),
    ("log", &["threads"]),
    ("kernel", &[]),
    ("exposition", &[]),
    ("cgroup", &["exposition", "kernel"]),
    ("runtime", &["cgroup", "threads"]),
    (
        "source",
        &["cgroup", "exposition", "kernel", "runtime", "threads"],
    ),
    (
        "agent",
        &[
            "source",
            "cgroup",
            "exposition",
            "kernel",
            "log",
            "runtime",
            "threads",
        ],
    ),
    ("web", &["agent", "exposition", "kernel"]),
    (
        "settings",
        &["agent", "cgroup", "log", "runtime", "source", "web"],
    ),
    ("cli", &["exposition", "settings"]),
    ("reload", &["agent", "cli", "log", "runtime", "settings"]),
    ("reference", &["cli", "exposition", "settings", "source"]),
    (
        "check",
        &["agent", "cgroup", "kernel", "runtime", "settings"],
    ),
    ("healthcheck", &[]),
    ("dump", &["exposition"]),
];

fn files(path: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// First names of `crate::name…` and of `use crate::{name…, name…}`.
fn imports(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for part in text.split("crate::").skip(1) {
        let group = part.strip_prefix('{').unwrap_or(part);
        let mut depth = 0;
        let mut expecting = true;
        let mut name = String::new();
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => expecting = true,
                c if expecting && (c.is_alphanumeric() || c == '_') => name.push(c),
                c if expecting && c.is_whitespace() && name.is_empty() => {}
                _ => expecting = false,
            }
            if !expecting && !name.is_empty() {
                names.push(std::mem::take(&mut name));
            }
            // A plain path ends here; only a group goes on.
            if !part.starts_with('{') && !expecting {
                break;
            }
        }
        if !name.is_empty() {
            names.push(name);
        }
    }
    names
}

#[test]
fn imports_are_found() {
    let text = "use crate::{cgroup::{NodeId, Tree}, exposition::Value, kernel}; crate::web::x();";
    assert_eq!(imports(text), ["cgroup", "exposition", "kernel", "web"]);
}

#[test]
fn every_module_has_its_layer() {
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs");
    let text = fs::read_to_string(library).unwrap();
    let mut modules: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ").or(line.strip_prefix("mod ")))
        .map(|rest| rest.trim_end_matches(';'))
        .collect();
    let mut layers: Vec<&str> = LAYERS.iter().map(|(layer, _)| *layer).collect();
    modules.sort_unstable();
    layers.sort_unstable();
    assert_eq!(modules, layers);
}

#[test]
fn nothing_points_back() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let layers: Vec<&str> = LAYERS.iter().map(|(layer, _)| *layer).collect();
    for (layer, allowed) in LAYERS {
        let mut found = Vec::new();
        let folder = source.join(layer);
        if folder.is_dir() {
            files(&folder, &mut found);
        }
        found.extend(Some(source.join(format!("{layer}.rs"))).filter(|path| path.is_file()));
        assert!(!found.is_empty(), "no layer {layer}");
        for path in found {
            for import in imports(&fs::read_to_string(&path).unwrap()) {
                let other = layers.contains(&import.as_str()) && import != *layer;
                assert!(
                    !other || allowed.contains(&import.as_str()),
                    "{} imports {import}",
                    path.display()
                );
            }
        }
    }
}

/// The crates whose modules must not import each other in a circle: folder and root.
const CRATES: &[(&str, &str)] = &[
    ("collector/src", "lib.rs"),
    ("collector-common/src", "lib.rs"),
    ("collector-ebpf/src", "main.rs"),
    ("xtask/src", "main.rs"),
    ("deploy/checks/src", "lib.rs"),
    ("examples/shop/src", "main.rs"),
    ("http-client/src", "lib.rs"),
    ("collector/toolchain/src", "lib.rs"),
    ("tests/live", "main.rs"),
];

#[test]
fn no_modules_import_each_other() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    for (folder, root) in CRATES {
        let modules = Crate::at(&workspace.join(folder), root);
        let faults = modules.circles().into_iter().chain(modules.globs());
        found.extend(faults.map(|fault| format!("{folder}: {fault}")));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// What an attribute that allows `unsafe_code` stands before: the first line after each.
fn allowances(text: &str) -> Vec<&str> {
    let mentions = text.match_indices("unsafe_code").map(|(at, _)| at);
    let allowing = mentions.filter(|&at| {
        let before = &text[..at];
        let attribute = before.rfind("#[").max(before.rfind("#![")).unwrap_or(0);
        let levels = ["allow(", "expect(", "warn("];
        levels
            .iter()
            .any(|level| before[attribute..].contains(level))
    });
    let items = allowing.map(|at| {
        let end = text[at..].find(")]").map_or(text.len(), |end| at + end + 2);
        text[end..].trim_start().lines().next().unwrap_or_default()
    });
    items.collect()
}

#[test]
fn allowances_are_found() {
    let text = "#![deny(unsafe_code)]\n#[allow(unsafe_code)]\nmod a;\n#[expect(\n    unsafe_code,\n    \
                reason = \"x\"\n)]\npub mod b;\n";
    assert_eq!(allowances(text), ["mod a;", "pub mod b;"]);
}

/// Every place below a folder where `unsafe` is allowed.
fn lets_unsafe_through(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut paths = Vec::new();
    files(folder, &mut paths);
    let mut found = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let items = allowances(&text).into_iter();
        found.extend(items.map(|item| (path.clone(), item.to_owned())));
    }
    found
}

#[test]
fn the_kernel_module_alone_may_have_unsafe_code() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let expected = [(folder.join("src/lib.rs"), "pub mod kernel;".to_owned())];
    assert_eq!(lets_unsafe_through(&folder.join("src")), expected);
    let root = fs::read_to_string(folder.join("src/lib.rs")).unwrap();
    assert!(root.contains("#![deny(missing_docs, unsafe_code)]"));
    let common = folder.join("../collector-common/src");
    assert_eq!(lets_unsafe_through(&common), []);
    // Every crate of the workspace that has no lints of its own.
    let workspace = fs::read_to_string(folder.join("../Cargo.toml")).unwrap();
    assert!(workspace.contains("unsafe_code = \"deny\""));
}
