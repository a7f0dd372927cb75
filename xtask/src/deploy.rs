//! `deploy`: checks what is shipped for Prometheus and Alertmanager.

use anyhow::Result;
use deploy_checks::{alertmanager, prometheus, rules};

use crate::{
    setup::setup_tests,
    shell::{has, target},
    tally::Tally,
};

/// The tools, and Debian's packages of them.
const TOOLS: [(&str, &str); 2] = [
    ("promtool", "prometheus"),
    ("amtool", "prometheus-alertmanager"),
];

/// Runs `cargo xtask deploy`.
pub fn deploy() -> Result<()> {
    setup_tests()?;
    let mut tally = Tally::default();
    steps(&mut tally, true);
    tally.close()
}

/// All checks. Unless `strict`, a missing tool is a warning, and its checks are left out.
pub fn steps(tally: &mut Tally, strict: bool) {
    tally.step("rules: names, runbooks, cases", rules::check);
    let missing: Vec<_> = TOOLS.iter().filter(|(tool, _)| !has(tool)).collect();
    if !missing.is_empty() && !strict {
        for (tool, package) in missing {
            eprintln!(
                "xtask: warning: SKIPPED: the shipped configurations are not checked without {tool}: \
                 apt-get install {package}"
            );
        }
        return;
    }
    tally.counted("rules and configurations: promtool", |counts| {
        counts.passed += prometheus::check(&target())?;
        Ok(())
    });
    tally.counted("Alertmanager: amtool", |counts| {
        counts.passed += alertmanager::check()?;
        Ok(())
    });
}
