//! Reads the metric reference, docs/metrics.md, which `cargo xtask docs` writes.

/// A metric of the agent.
#[derive(Debug)]
pub struct Row<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its type.
    pub kind: &'a str,
    /// Its labels, without those that all metrics of cgroups have.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "only checks of dashboards ask for labels")
    )]
    pub labels: &'a str,
}

/// The metrics of the page.
pub fn rows(page: &str) -> impl Iterator<Item = Row<'_>> {
    page.lines().filter_map(|line| {
        let mut cells = line.split('|').map(str::trim).skip(1);
        let name = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
        let kind = cells.next()?;
        let labels = cells.nth(1).unwrap_or_default();
        Some(Row { name, kind, labels })
    })
}
