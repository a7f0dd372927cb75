//! Prometheus and Alertmanager with the shipped configurations and short intervals.
//!
//! The configurations are those that are shipped, with some text replaced. A text that is not found
//! is an error. The test uses its own addresses and secrets, intervals of a second, no `for`, and
//! windows of seconds instead of minutes and hours. Thresholds, expressions, labels, routes and inhibition
//! are as shipped.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{agent::free_port, queried::json};

/// Length of the windows for rates and events, seconds.
pub const WINDOW: u64 = 8;
/// The token that the webhook expects.
pub const TOKEN: &str = "token-of-the-test";
/// The key that PagerDuty expects.
pub const PAGER_KEY: &str = "key-of-the-test";

/// Prometheus and Alertmanager, with a folder. All are removed on drop.
pub struct Stack {
    prometheus: Child,
    alertmanager: Child,
    folder: PathBuf,
    /// Prometheus's port.
    pub prometheus_port: u16,
    /// Alertmanager's port.
    pub alertmanager_port: u16,
}

/// Replaces text. An error if the text is not found.
fn replaced(text: &str, old: &str, new: &str) -> Result<String> {
    ensure!(
        text.contains(old),
        "{old:?} is not in a shipped file: update the test's replacements"
    );
    Ok(text.replace(old, new))
}

/// The shipped rules with short times.
fn hasty_rules(text: &str) -> String {
    let mut hasty = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("keep_firing_for: ") {
            continue;
        }
        let line = if line.trim_start().starts_with("for: ") {
            "    for: 0s"
        } else {
            line
        };
        hasty.push_str(line);
        hasty.push('\n');
    }
    for window in ["1m", "5m", "10m", "15m", "1h"] {
        hasty = hasty
            .replace(&format!("[{window}]"), &format!("[{WINDOW}s]"))
            .replace(&format!("offset {window}"), &format!("offset {WINDOW}s"));
    }
    hasty
}

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn write_rules(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let mut killed = 0;
    for entry in fs::read_dir(shipped().join("prometheus/rules"))? {
        let path = entry?.path();
        let mut text = hasty_rules(&fs::read_to_string(&path)?);
        let gone = "time() - container_last_seen > 60";
        if text.contains(gone) {
            text = text.replace(gone, "time() - container_last_seen > 4");
            killed += 1;
        }
        fs::write(folder.join(path.file_name().context("no name")?), text)?;
    }
    ensure!(
        killed == 1,
        "ContainerKilled has changed: update the test's replacements"
    );
    Ok(())
}

impl Stack {
    /// Starts both. Prometheus scrapes the agent, Alertmanager notifies the receiver.
    pub fn start(agent: u16, receiver: u16) -> Result<Self> {
        let (prometheus_port, alertmanager_port) = (free_port()?, free_port()?);
        let folder = std::env::temp_dir().join(format!("cgmeter-test-alerts-{prometheus_port}"));
        let _ = fs::remove_dir_all(&folder);
        write_rules(&folder.join("rules"))?;

        let text = fs::read_to_string(shipped().join("prometheus/prometheus.yml"))?;
        let text = replaced(&text, "127.0.0.1:10295", &format!("127.0.0.1:{agent}"))?;
        let text = replaced(
            &text,
            "127.0.0.1:9093",
            &format!("127.0.0.1:{alertmanager_port}"),
        )?;
        let text = replaced(
            &text,
            "127.0.0.1:9090",
            &format!("127.0.0.1:{prometheus_port}"),
        )?;
        let text = replaced(&text, "interval: 15s", "interval: 1s")?;
        let text = replaced(&text, "scrape_timeout: 10s", "scrape_timeout: 1s")?;
        fs::write(folder.join("prometheus.yml"), text)?;

        let text = fs::read_to_string(shipped().join("alertmanager/alertmanager.yml"))?;
        let at = |path: &str| format!("http://127.0.0.1:{receiver}/{path}");
        let text = replaced(&text, "http://127.0.0.1:9095/alerts", &at("alerts"))?;
        let text = replaced(
            &text,
            "https://events.pagerduty.com/v2/enqueue",
            &at("pagerduty"),
        )?;
        // No process listens there. No alert of the test is sent by mail.
        let text = replaced(&text, "smtp.example.org:587", "127.0.0.1:9")?;
        let text = replaced(&text, "group_wait: 30s", "group_wait: 0s")?;
        let text = replaced(&text, "group_wait: 10s", "group_wait: 0s")?;
        let text = replaced(&text, "group_interval: 5m", "group_interval: 1s")?;
        fs::write(folder.join("alertmanager.yml"), text)?;
        let templates = folder.join("templates");
        fs::create_dir_all(&templates)?;
        fs::copy(
            shipped().join("alertmanager/templates/cgmeter.tmpl"),
            templates.join("cgmeter.tmpl"),
        )?;
        let secrets = folder.join("secrets");
        fs::create_dir_all(&secrets)?;
        fs::write(secrets.join("webhook-token"), TOKEN)?;
        fs::write(secrets.join("pagerduty-key"), PAGER_KEY)?;
        fs::write(secrets.join("slack-url"), at("slack"))?;
        fs::write(secrets.join("smtp-password"), "none")?;

        let start = |program: &str, arguments: &[String]| {
            Command::new(program)
                .args(arguments)
                .current_dir(&folder)
                .stdout(Stdio::null())
                .stderr(File::create(folder.join(format!("{program}.log")))?)
                .spawn()
                .with_context(|| format!("starting {program}"))
        };
        let alertmanager = start(
            "prometheus-alertmanager",
            &[
                "--config.file=alertmanager.yml".to_owned(),
                "--storage.path=alertmanager".to_owned(),
                "--cluster.listen-address=".to_owned(),
                format!("--web.listen-address=127.0.0.1:{alertmanager_port}"),
            ],
        )?;
        let prometheus = start(
            "prometheus",
            &[
                "--config.file=prometheus.yml".to_owned(),
                "--storage.tsdb.path=prometheus".to_owned(),
                format!("--web.listen-address=127.0.0.1:{prometheus_port}"),
            ],
        );
        let prometheus = match prometheus {
            Ok(child) => child,
            Err(error) => {
                let mut alertmanager = alertmanager;
                let _ = alertmanager.kill();
                let _ = alertmanager.wait();
                return Err(error);
            }
        };
        Ok(Self {
            prometheus,
            alertmanager,
            folder,
            prometheus_port,
            alertmanager_port,
        })
    }

    /// Whether an instant query has a result.
    pub fn holds(&self, query: &str) -> Result<bool> {
        let quoted: String = query
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
                other => format!("%{other:02X}"),
            })
            .collect();
        let Ok(answer) = json(
            self.prometheus_port,
            &format!("/api/v1/query?query={quoted}"),
        ) else {
            // Not yet up, or ended. `wait` fails with its log then.
            return Ok(false);
        };
        ensure!(answer["status"] == "success", "{query}: {answer}");
        let result = answer["data"]["result"].as_array();
        Ok(result.is_some_and(|result| !result.is_empty()))
    }

    /// Alertmanager's states of the alerts with this label: active, suppressed.
    pub fn states(&self, label: &str, value: &str) -> Result<Vec<String>> {
        let alerts = json(self.alertmanager_port, "/api/v2/alerts")?;
        let alerts = alerts.as_array().context("no list of alerts")?;
        let states = alerts
            .iter()
            .filter(|alert| alert["labels"][label] == value)
            .filter_map(|alert| alert["status"]["state"].as_str());
        Ok(states.map(str::to_owned).collect())
    }

    /// Waits until a condition holds.
    pub fn wait(&self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(60);
        while !holds()? {
            if Instant::now() > until {
                bail!("not within a minute: {what}\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn logs(&self) -> String {
        let log = |program: &str| {
            let path = self.folder.join(format!("{program}.log"));
            let text = fs::read_to_string(path).unwrap_or_default();
            let bad: Vec<&str> = text
                .lines()
                .filter(|line| !line.contains("level=info"))
                .collect();
            format!("{program}:\n{}\n", bad.join("\n"))
        };
        let alerts = json(self.prometheus_port, "/api/v1/alerts").unwrap_or_default();
        format!(
            "{}{}Prometheus's alerts: {alerts}",
            log("prometheus"),
            log("prometheus-alertmanager")
        )
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        for child in [&mut self.prometheus, &mut self.alertmanager] {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}
