//! `docs`: the references of metrics and of settings, which the agent prints from its own tables.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail};

use crate::{
    build::build_only,
    shell::{agent, output, root},
};

/// Pages, from the root of the repository, and the agent's command that prints each.
const PAGES: &[(&str, &str)] = &[
    ("docs/metrics.md", "metrics"),
    ("docs/configuration.md", "settings"),
];

/// Writes the pages, or fails if one is out of date.
pub fn docs(check: bool) -> Result<()> {
    build_only()?;
    for &(page, command) in PAGES {
        let text = output(Command::new(agent()).args([command, "--format", "markdown"]))?;
        update(page, &text, check)?;
    }
    Ok(())
}

/// Writes one page, or fails if it is out of date.
fn update(page: &str, text: &str, check: bool) -> Result<()> {
    let path = root().join(page);
    let old = fs::read_to_string(&path).unwrap_or_default();
    if old == text {
        return Ok(());
    }
    if check {
        bail!(
            "{page} is out of date: run `cargo xtask docs` and commit the result. {}",
            difference(&old, text)
        );
    }
    fs::create_dir_all(root().join("docs"))
        .and_then(|()| fs::write(&path, text))
        .with_context(|| format!("writing {page}"))?;
    println!("{page} is new");
    Ok(())
}

/// The first line that differs, as a diff shows it.
fn difference(old: &str, new: &str) -> String {
    let (mut old, mut new) = (old.lines(), new.lines());
    for number in 1.. {
        let shown = |line: Option<&str>| line.unwrap_or("(ends)").to_owned();
        match (old.next(), new.next()) {
            (None, None) => break,
            (was, is) if was == is => {}
            (was, is) => return format!("Line {number}:\n- {}\n+ {}", shown(was), shown(is)),
        }
    }
    "Only the line endings differ.".to_owned()
}

#[cfg(test)]
mod tests {
    use super::difference;

    #[test]
    fn the_first_difference_is_shown() {
        assert_eq!(difference("a\nb\nc\n", "a\nx\nc\n"), "Line 2:\n- b\n+ x");
        assert_eq!(difference("", "a\n"), "Line 1:\n- (ends)\n+ a");
        assert_eq!(difference("a\n", "a"), "Only the line endings differ.");
    }
}
