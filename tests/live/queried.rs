//! Runs a Prometheus that scrapes several targets and evaluates queries as Grafana sends them: over
//! its HTTP API, as instant or range queries.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use http_client::escaped;
use serde_json::Value;

use crate::agent::{free_port, get};

/// Step of a range query, seconds.
const STEP: u64 = 2;

/// A running Prometheus.
pub struct Queried {
    child: Child,
    port: u16,
    folder: PathBuf,
}

impl Queried {
    /// Starts a Prometheus that scrapes each (job, port) on loopback every second and evaluates the
    /// given rules.
    pub fn start(targets: &[(&str, u16)], rules: &[PathBuf]) -> Result<Self> {
        Self::start_with(targets, rules, "cluster: test", "")
    }

    /// The same, with these labels of each target and these lines of each scrape configuration.
    pub fn start_with(
        targets: &[(&str, u16)],
        rules: &[PathBuf],
        labels: &str,
        settings: &str,
    ) -> Result<Self> {
        let port = free_port()?;
        let folder = std::env::temp_dir().join(format!("cgmeter-test-queried-{port}"));
        fs::create_dir_all(&folder)?;
        let mut config =
            "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\nrule_files:\n".to_owned();
        for file in rules {
            config += &format!("- {}\n", file.display());
        }
        config += "scrape_configs:\n";
        for (job, port) in targets {
            config += &format!(
                "- job_name: {job}\n{settings}  static_configs:\n  - targets: ['127.0.0.1:{port}']\n    \
                 labels: {{{labels}}}\n"
            );
        }
        let file = folder.join("prometheus.yml");
        fs::write(&file, config)?;
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("log"))?)
            .spawn()
            .context("starting Prometheus")?;
        let mut started = Self {
            child,
            port,
            folder,
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !get(port, "/-/ready").is_ok_and(|answer| answer.status == 200) {
            if let Some(status) = started.child.try_wait()? {
                bail!("Prometheus ended ({status}): {}", started.log());
            }
            ensure!(
                Instant::now() < deadline,
                "Prometheus does not serve: {}",
                started.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(started)
    }

    /// The log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// The field `data` of an answer of the API. An error has Prometheus's message.
    fn data(&self, path: &str) -> Result<Value> {
        // If a query fails, the status is not 200, and the JSON has the error.
        let mut answer = json(self.port, path)?;
        ensure!(answer["status"] == "success", "{path}: {}", answer["error"]);
        Ok(answer["data"].take())
    }

    fn result(&self, query: &str) -> Result<Vec<Value>> {
        let mut data = self.data(&format!("/api/v1/query?query={}", escaped(query)))?;
        Ok(serde_json::from_value(data["result"].take())?)
    }

    /// Waits until an instant query has a result, and returns it.
    pub fn query(&self, query: &str) -> Result<Vec<Value>> {
        self.query_within(query, Duration::from_secs(40))
    }

    /// Waits for at most `patience` until an instant query has a result, and returns it.
    pub fn query_within(&self, query: &str, patience: Duration) -> Result<Vec<Value>> {
        let until = Instant::now() + patience;
        loop {
            match self.result(query) {
                Ok(result) if !result.is_empty() => return Ok(result),
                answer if Instant::now() > until => {
                    bail!("{query}: no result: {answer:?}\n{}", self.log())
                }
                _ => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    }

    /// Waits until an instant query has a result, and returns the value of its first series.
    pub fn value(&self, query: &str) -> Result<f64> {
        let result = self.query(query)?;
        let text = result.first().and_then(|first| first["value"][1].as_str());
        Ok(text.context("no value")?.parse()?)
    }

    /// Number of series whose value is a number, for an instant query now.
    pub fn at_once(&self, query: &str) -> Result<usize> {
        let series = self.result(query)?;
        Ok(series
            .iter()
            .filter(|series| is_number(&series["value"]))
            .count())
    }

    /// Number of series with a number among their values, for a range query over the last
    /// `seconds`.
    pub fn range(&self, query: &str, seconds: u64) -> Result<usize> {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)?
            .as_secs();
        let data = self.data(&format!(
            "/api/v1/query_range?query={}&start={}&end={now}&step={STEP}",
            escaped(query),
            now - seconds
        ))?;
        let series = data["result"].as_array().context("no result")?;
        let any = |series: &&Value| {
            series["values"]
                .as_array()
                .is_some_and(|all| all.iter().any(is_number))
        };
        Ok(series.iter().filter(any).count())
    }

    /// The values of a label of the series that a selector matches.
    pub fn label_values(&self, selector: &str, label: &str) -> Result<Vec<String>> {
        let path = format!("/api/v1/label/{label}/values?match[]={}", escaped(selector));
        Ok(serde_json::from_value(self.data(&path)?)?)
    }
}

impl Drop for Queried {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Sends a GET request to a port on loopback and returns the JSON, for any status.
pub fn json(port: u16, path: &str) -> Result<Value> {
    let answer = get(port, path)?;
    let said = || {
        format!(
            "{path}: {}: {}",
            answer.status_line,
            answer.body.escape_ascii()
        )
    };
    serde_json::from_slice(&answer.body).with_context(said)
}

/// Whether a point is not NaN, which is the ratio or the quantile of nothing.
fn is_number(point: &Value) -> bool {
    let text = point[1].as_str();
    text.is_some_and(|text| text.parse::<f64>().is_ok_and(|number| !number.is_nan()))
}

/// The shipped recording and alerting rules. Empty if the folder does not exist.
pub fn shipped_rules(repository: &Path) -> Vec<PathBuf> {
    let folder = fs::read_dir(repository.join("deploy/prometheus/rules"));
    let files = folder
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    files
        .filter(|path| path.extension().is_some_and(|extension| extension == "yml"))
        .collect()
}
