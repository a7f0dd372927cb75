//! `new-source`: writes the skeleton of a source with one counter, which counts from the start.
//!
//! The counter is the number of events of a tracepoint, by the cgroup of the running task. The
//! skeleton has all that a source needs: cell, program, table of metrics, live test, and the lines
//! that register them. `cargo xtask test --all` makes one in a copy of the project, and runs its test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    build::QUICK,
    shell::{cargo, output, require_root, root, run, target},
};

/// What to do.
#[derive(Debug, clap::Args)]
pub struct NewSourceOptions {
    #[command(flatten)]
    source: Option<NewSource>,
    /// Only make one in a copy of the project, build it and run its test (as root)
    #[arg(long, exclusive = true)]
    check: bool,
}

/// A new source.
#[derive(Clone, Debug, clap::Args)]
struct NewSource {
    /// Name of the source, for example `births`
    name: String,
    /// Tracepoint that it counts, for example `task/task_newtask`
    #[arg(long, value_name = "SYSTEM/EVENT")]
    tracepoint: String,
    /// What the test's workload does to cause events: an order of tests/live/worker.rs
    #[arg(long, value_name = "ORDER")]
    work: String,
}

/// Template and folder of each file.
const FILES: [(&str, &str); 4] = [
    (
        include_str!("new_source/cell.rs.in"),
        "collector-common/src",
    ),
    (
        include_str!("new_source/program.rs.in"),
        "collector-ebpf/src",
    ),
    (
        include_str!("new_source/source.rs.in"),
        "collector/src/source",
    ),
    (include_str!("new_source/test.rs.in"), "tests/live"),
];

/// A line that registers the source: file, the line before the list that it belongs to, the list's
/// last line, and the line itself. A list without a last line is one of modules and stays sorted.
const LINES: [(&str, &str, Option<&str>, &str); 10] = [
    (
        "collector-common/src/lib.rs",
        "pub mod ",
        None,
        "pub mod NAME;",
    ),
    ("collector-ebpf/src/main.rs", "mod ", None, "mod NAME;"),
    ("collector/src/source/mod.rs", "mod ", None, "mod NAME;"),
    ("tests/live/main.rs", "mod ", None, "mod NAME;"),
    (
        "collector/src/kernel/cells.rs",
        "use collector_common::",
        Some("};"),
        "use collector_common::NAME::TypeCell;",
    ),
    (
        "collector/src/kernel/cells.rs",
        "cells! {",
        Some("}"),
        "    TypeCell, \"UPPER_CELLS\", One;",
    ),
    (
        "collector-ebpf/src/removal/cells.rs",
        "one_cell! {",
        Some("}"),
        "    NAME::UPPER_CELLS,",
    ),
    (
        "collector/src/kernel/programs.rs",
        "pub const PROGRAMS:",
        Some("];"),
        "    tracepoint(\"EVENT\"),",
    ),
    (
        "collector/src/source/mod.rs",
        "pub const SOURCES:",
        Some("];"),
        "    NAME::SOURCE,",
    ),
    (
        "tests/live/main.rs",
        "const TESTS:",
        Some("];"),
        "    NAME::TESTS,",
    ),
];

/// Writes the skeleton into the project, or checks that one works.
pub fn new_source(options: &NewSourceOptions) -> Result<()> {
    let Some(source) = options.source.as_ref().filter(|_| !options.check) else {
        require_root("new-source --check", "the test loads BPF programs")?;
        return check();
    };
    source.write(&root())?;
    println!(
        "Source {0} is there. Next:\n  \
         1. Describe the metric: collector/src/source/{0}.rs. Whose cgroup an event belongs to: \
         collector-ebpf/src/{0}.rs.\n  \
         2. cargo xtask docs, and a line in CHANGELOG.md.\n  \
         3. cargo xtask test {0}::",
        source.name
    );
    Ok(())
}

/// Makes a source in a copy of the project, builds it and runs its test. As root.
pub fn check() -> Result<()> {
    let source = NewSource {
        name: "births".to_owned(),
        tracepoint: "task/task_newtask".to_owned(),
        work: "fork 20".to_owned(),
    };
    let copy = target().join("new-source/project");
    copy_project(&copy)?;
    source.write(&copy)?;
    let cargo = |arguments: &[&str]| {
        let mut command = cargo(arguments);
        command
            .current_dir(&copy)
            .env("CARGO_TARGET_DIR", target().join("new-source/target"));
        command
    };
    run(&mut cargo(&[
        "build",
        "--locked",
        "--profile",
        QUICK,
        "--package",
        "cgmeter",
    ]))?;
    let agent = target()
        .join("new-source/target")
        .join(QUICK)
        .join("cgmeter");
    let live = ["--package", "cgmeter-tests", "--test", "live"];
    let mut test = cargo(&["test", "--locked", "--profile", QUICK]);
    test.args(live).args(["--", "--test-threads=1", "births::"]);
    let text = output(test.env("CGMETER_BIN", agent))?;
    ensure!(
        text.contains("test result: ok. 1 passed"),
        "the test of the new source did not run:\n{text}"
    );
    Ok(())
}

/// Copies the files that git knows, those that are new and not ignored included.
fn copy_project(copy: &Path) -> Result<()> {
    if copy.exists() {
        fs::remove_dir_all(copy).with_context(|| format!("removing {}", copy.display()))?;
    }
    let mut git = Command::new("git");
    git.args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]);
    let files = output(git.current_dir(root()))?;
    for file in files.split_terminator('\0') {
        let (from, to) = (root().join(file), copy.join(file));
        // A file that was removed and not yet committed is still listed.
        if !from.is_file() {
            continue;
        }
        fs::create_dir_all(to.parent().unwrap_or(copy))?;
        fs::copy(&from, &to).with_context(|| format!("copying {file}"))?;
    }
    Ok(())
}

impl NewSource {
    /// Writes the files and the lines. Nothing is written if anything is wrong.
    fn write(&self, project: &Path) -> Result<()> {
        let edits = self.edits(project)?;
        for (file, text) in &edits {
            fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
        }
        // The imports may have to be in another order.
        run(cargo(&["fmt", "--all"]).current_dir(project))
    }

    /// Files and their new contents.
    fn edits(&self, project: &Path) -> Result<Vec<(PathBuf, String)>> {
        let word = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_lowercase())
                && text
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        };
        ensure!(
            word(&self.name),
            "{:?} can't be the name of a source: use small letters, digits and _",
            self.name
        );
        let (system, event) = self
            .tracepoint
            .split_once('/')
            .filter(|(system, event)| word(system) && word(event))
            .with_context(|| {
                format!(
                    "{:?} is no tracepoint: give system and event as below /sys/kernel/tracing/events, \
                     for example task/task_newtask",
                    self.tracepoint
                )
            })?;
        ensure!(
            !self.work.contains(['"', '\\', '\n']),
            "an order is a few words, for example `fork 20`"
        );
        let fill = |template: &str| {
            template
                .replace("UPPER", &self.name.to_uppercase())
                .replace("Type", &camel(&self.name))
                .replace("SYSTEM", system)
                .replace("EVENT", event)
                .replace("NAME", &self.name)
                .replace("WORK", &self.work)
        };
        let mut edits: Vec<(PathBuf, String)> = Vec::new();
        for (template, folder) in FILES {
            let file = project.join(folder).join(format!("{}.rs", self.name));
            if file.exists() || file.with_extension("").exists() {
                bail!(
                    "{} is there already: choose another name, or add a counter to that source \
                     (CONTRIBUTING.md)",
                    file.display()
                );
            }
            edits.push((file, fill(template)));
        }
        for (file, list, end, line) in LINES {
            let file = project.join(file);
            let at = match edits.iter().position(|(known, _)| *known == file) {
                Some(at) => at,
                None => {
                    let text = fs::read_to_string(&file)
                        .with_context(|| format!("reading {}", file.display()))?;
                    edits.push((file.clone(), text));
                    edits.len() - 1
                }
            };
            let line = fill(line);
            let text = &mut edits[at].1;
            if list.contains("PROGRAMS") && text.contains(&format!("tracepoint(\"{event}\")")) {
                bail!(
                    "{event} has a program already: add the counter to its source (CONTRIBUTING.md)"
                );
            }
            *text = insert(text, list, end, &line)
                .with_context(|| format!("{} has no list that begins {list:?}", file.display()))?;
        }
        Ok(edits)
    }
}

/// Adds a line to a list: before its last line, or sorted where it has none.
fn insert(text: &str, list: &str, end: Option<&str>, line: &str) -> Option<String> {
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.iter().position(|line| line.starts_with(list))?;
    let at = match end {
        // An import follows the list; an entry is its last.
        Some("};") => {
            first
                + lines[first..]
                    .iter()
                    .position(|line| line.ends_with("};"))?
                + 1
        }
        Some(end) => first + lines[first..].iter().position(|line| *line == end)?,
        None => {
            let listed = lines[first..].iter();
            first
                + listed
                    .take_while(|known| known.starts_with(list) && **known < line)
                    .count()
        }
    };
    let mut new: Vec<&str> = lines[..at].to_vec();
    new.push(line);
    new.extend(&lines[at..]);
    Some(new.join("\n") + "\n")
}

/// `page_faults` as `PageFaults`.
fn camel(name: &str) -> String {
    let words = name.split('_').filter(|word| !word.is_empty());
    words
        .map(|word| word[..1].to_uppercase() + &word[1..])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str, tracepoint: &str) -> NewSource {
        NewSource {
            name: name.to_owned(),
            tracepoint: tracepoint.to_owned(),
            work: "fork 20".to_owned(),
        }
    }

    #[test]
    fn every_list_is_found_and_gets_its_line() {
        let edits = source("page_moves", "migrate/mm_migrate_pages")
            .edits(&root())
            .unwrap();
        let text = |file: &str| {
            let found = edits.iter().find(|(path, _)| path.ends_with(file));
            &found.unwrap().1
        };
        for (file, line) in [
            (
                "collector-common/src/lib.rs",
                "pub mod page_moves;\npub mod paths;",
            ),
            (
                "collector-ebpf/src/main.rs",
                "mod page_moves;\nmod process;",
            ),
            (
                "collector/src/kernel/cells.rs",
                "    PageMovesCell, \"PAGE_MOVES_CELLS\", One;\n}",
            ),
            (
                "collector/src/kernel/programs.rs",
                "    tracepoint(\"mm_migrate_pages\"),\n];",
            ),
            ("collector/src/source/mod.rs", "    page_moves::SOURCE,\n];"),
            ("tests/live/main.rs", "    page_moves::TESTS,\n];"),
            ("tests/live/page_moves.rs", "\"migrate/mm_migrate_pages\""),
        ] {
            assert!(text(file).contains(line), "{file}: {line}");
        }
    }

    #[test]
    fn bad_names_and_tracepoints_are_refused() {
        for (name, tracepoint, error) in [
            ("Page", "a/b", "small letters"),
            ("../x", "a/b", "small letters"),
            ("page", "mm_migrate_pages", "is no tracepoint"),
            ("reclaim", "a/b", "is there already"),
            ("page", "sched/sched_switch", "has a program already"),
        ] {
            let found = source(name, tracepoint).edits(&root()).unwrap_err();
            assert!(format!("{found:#}").contains(error), "{found:#}");
        }
    }
}
