//! The agent builds without the project's chores, tests and examples: see collector/build.rs.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// Folders that a build of the agent doesn't need.
const CHORES: [&str; 4] = ["xtask", "tests", "deploy", "examples"];
/// Folders of the kernel programs, which are a workspace of their own.
const KERNEL_SIDE: [&str; 1] = ["collector-ebpf"];

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.canonicalize().unwrap()
}

/// Folders of the packages that `cgmeter` depends on within the repository, itself included.
/// Dependencies of build scripts and tests count as well.
fn packages() -> BTreeSet<PathBuf> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--no-deps", "--format-version=1"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let members = metadata["packages"].as_array().unwrap();
    let folder_of = |package: &Value| {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap());
        manifest.parent().unwrap().to_path_buf()
    };
    let (mut found, mut todo) = (BTreeSet::new(), vec![root().join("collector")]);
    while let Some(folder) = todo.pop() {
        let package = members.iter().find(|member| folder_of(member) == folder);
        let package = package.unwrap_or_else(|| panic!("{} is no member", folder.display()));
        let dependencies = package["dependencies"].as_array().unwrap();
        todo.extend(
            dependencies
                .iter()
                .filter_map(|dependency| dependency["path"].as_str().map(PathBuf::from))
                .filter(|path| !found.contains(path)),
        );
        found.insert(folder);
    }
    found
}

/// Rust sources and manifests below a folder. `tests` are left out: they may name what they check.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            if !["target", "tests"].contains(&name) {
                sources(&path, found);
            }
        } else if name.ends_with(".rs") || name == "Cargo.toml" {
            found.push(path);
        }
    }
}

#[test]
fn the_agent_depends_on_no_chore() {
    let packages = packages();
    assert!(packages.contains(&root().join("collector-common")));
    for package in packages {
        let relative = package.strip_prefix(root()).unwrap();
        let chore = CHORES.iter().any(|chore| relative.starts_with(chore));
        assert!(!chore, "cgmeter depends on {}", relative.display());
    }
}

#[test]
fn no_source_of_the_agent_names_a_file_of_the_chores() {
    let mut files = Vec::new();
    for package in packages() {
        sources(&package, &mut files);
    }
    for folder in KERNEL_SIDE {
        sources(&root().join(folder), &mut files);
    }
    assert!(files.contains(&root().join("collector/build.rs")));
    let paths: Vec<String> = CHORES.map(|chore| format!("../{chore}")).into();
    let prefixes: Vec<String> = CHORES.map(|chore| format!("\"{chore}/")).into();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for line in text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
        {
            let named = paths
                .iter()
                .chain(&prefixes)
                .any(|path| line.contains(path.as_str()));
            assert!(!named, "{}: {line}", file.display());
        }
    }
}
