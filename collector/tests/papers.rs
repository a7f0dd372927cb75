//! The project's papers: the map stays short, decisions have their four parts, links lead somewhere.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Most words of ARCHITECTURE.md: what it does not have room for belongs into docs/.
const MAP: usize = 1500;
/// The headings of a page of docs/decisions, in their order.
const PARTS: [&str; 4] = [
    "## Context",
    "## Choice",
    "## What was measured",
    "## What would change it",
];
/// How paths begin that the map and the design name.
const FOLDERS: [&str; 6] = [
    "collector",
    "xtask/",
    "tests/",
    "deploy/",
    "docs/",
    "examples/",
];
/// Folders without papers of the project's own.
const LEFT_OUT: [&str; 4] = ["target", ".git", "node_modules", "bench-results"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every Markdown file below a folder.
fn pages(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !LEFT_OUT.contains(&name.as_str()) {
            pages(&path, found);
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
}

/// The lines of a page that are not in a fenced block.
fn prose(text: &str) -> Vec<&str> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            lines.push(line);
        }
    }
    lines
}

/// Targets of links and images: what stands between `](` and `)`.
fn links(text: &str) -> Vec<String> {
    let text = prose(text).join("\n");
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target.trim().to_owned())
        .collect()
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> Vec<String> {
    let headings = prose(text).into_iter().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

/// What is wrong with a page's links to other files of the repository.
fn dead_links(page: &Path, text: &str) -> Vec<String> {
    let mut dead = Vec::new();
    for link in links(text) {
        if link.contains("://") || link.starts_with("mailto:") {
            continue;
        }
        let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
        let target = match file {
            "" => page.to_owned(),
            file => page.parent().unwrap().join(file),
        };
        let there = target.exists()
            && (anchor.is_empty() || anchors(&read(&target)).contains(&anchor.to_owned()));
        if !there {
            dead.push(format!("{}: {link}", page.display()));
        }
    }
    dead
}

/// What is wrong with a page of docs/decisions.
fn decision_faults(text: &str) -> Vec<String> {
    let lines = prose(text);
    let headings: Vec<&str> = lines
        .iter()
        .copied()
        .filter(|line| line.starts_with("## "))
        .collect();
    if headings != PARTS {
        return vec![format!("has the headings {headings:?}, not {PARTS:?}")];
    }
    let has_text = |part: &str| {
        let after = lines.iter().skip_while(|line| **line != part).skip(1);
        let mut body = after.take_while(|line| !line.starts_with("## "));
        body.any(|line| !line.trim().is_empty())
    };
    let empty = PARTS.into_iter().filter(|part| !has_text(part));
    empty.map(|part| format!("{part} is empty")).collect()
}

/// Paths of the repository that a page names in backquotes and that are not there.
fn missing_paths(root: &Path, text: &str) -> Vec<String> {
    let text = prose(text).join("\n");
    let code = text.split('`').skip(1).step_by(2);
    let paths = code.filter(|code| {
        let legal = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
        // Capitals stand for something: `tests/live/NAME.rs`.
        let example = code.chars().any(|c| c.is_ascii_uppercase()) && !code.ends_with(".md");
        let ours = FOLDERS.iter().any(|folder| code.starts_with(folder));
        ours && code.chars().all(legal) && !example
    });
    paths
        .filter(|path| !root.join(path).exists())
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_map_is_short() {
    let words = read(&root().join("ARCHITECTURE.md"))
        .split_whitespace()
        .count();
    assert!(words <= MAP, "ARCHITECTURE.md has {words} words");
}

#[test]
fn every_decision_has_its_four_parts_and_is_listed() {
    let folder = root().join("docs/decisions");
    let index = read(&folder.join("README.md"));
    let listed = links(&index);
    let mut found = Vec::new();
    pages(&folder, &mut found);
    assert!(found.len() > 1, "there is no decision");
    for page in found {
        let name = page.file_name().unwrap().to_string_lossy().into_owned();
        if name == "README.md" {
            continue;
        }
        let number = name.split('-').next().unwrap();
        let numbered = number.len() == 4 && number.bytes().all(|byte| byte.is_ascii_digit());
        assert!(
            numbered,
            "{name} does not begin with a number of four digits"
        );
        let text = read(&page);
        let title = text.lines().next().unwrap_or_default();
        assert!(
            title.starts_with(&format!("# {number}: ")),
            "{name} begins with {title:?}"
        );
        assert_eq!(decision_faults(&text), [""; 0], "{name}");
        assert!(listed.contains(&name), "{name} is not in README.md");
    }
}

#[test]
fn no_link_is_dead() {
    let mut found = Vec::new();
    pages(&root(), &mut found);
    let dead: Vec<String> = found
        .iter()
        .flat_map(|page| dead_links(page, &read(page)))
        .collect();
    assert_eq!(dead, [""; 0]);
}

#[test]
fn the_map_names_what_is_there() {
    let root = root();
    let mut found = ["ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"]
        .map(|name| root.join(name))
        .to_vec();
    pages(&root.join("docs/design"), &mut found);
    let missing = found.iter().flat_map(|page| {
        let paths = missing_paths(&root, &read(page)).into_iter();
        paths.map(|path| format!("{}: {path}", page.display()))
    });
    assert_eq!(missing.collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn dead_links_and_missing_parts_are_found() {
    let page = root().join("README.md");
    let dead = |text: &str| dead_links(&page, text).len();
    assert_eq!(dead("[a](docs/limits.md) [b](https://x.example/y)"), 0);
    assert_eq!(dead("[a](docs/limits.md#block-io)"), 0);
    assert_eq!(dead("[a\nb](docs/no-such.md)"), 1);
    assert_eq!(dead("[a](docs/limits.md#no-such-heading)"), 1);
    assert_eq!(dead("# Here\n[a](README.md#nowhere)"), 1);
    assert_eq!(dead("```\n[a](docs/no-such.md)\n```"), 0);
    assert_eq!(
        anchors("# A `b`, c_d\n## Block I/O"),
        ["a-b-c_d", "block-io"]
    );

    let paths =
        "`docs/limits.md` `collector-ebpf/src/no_such.rs` `tests/live/NAME.rs` `collector::x`";
    assert_eq!(
        missing_paths(&root(), paths),
        ["collector-ebpf/src/no_such.rs"]
    );

    let whole = PARTS.map(|part| format!("{part}\n\ntext\n")).concat();
    assert_eq!(decision_faults(&whole), [""; 0]);
    assert_eq!(decision_faults(&whole.replacen("text", "", 1)).len(), 1);
    assert_eq!(decision_faults(&whole.replace("Choice", "Chosen")).len(), 1);
}
