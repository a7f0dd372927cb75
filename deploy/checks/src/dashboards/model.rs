//! The parts of a dashboard, and their JSON for Grafana.
//!
//! Invariant: ids and positions of panels follow from their order, so that changing one panel changes one
//! panel of the JSON.

use serde_json::{Value, json};

/// Columns of Grafana's grid.
const COLUMNS: u32 = 24;
/// Grafana's version of the format (Grafana 10.2 and later read it).
const SCHEMA: u32 = 39;

/// A dashboard.
pub struct Dashboard {
    /// Its stable name in URLs, which is also that of the file.
    pub uid: &'static str,
    /// Its title.
    pub title: &'static str,
    /// What it is for.
    pub description: &'static str,
    /// Its variables, apart from the data source.
    pub variables: Vec<Variable>,
    /// Rows of panels.
    pub rows: Vec<Row>,
}

/// A row with its title.
pub struct Row {
    /// Its title.
    pub title: &'static str,
    /// Its panels, laid out from left to right.
    pub panels: Vec<Panel>,
}

/// Makes a row.
pub fn row(title: &'static str, panels: Vec<Panel>) -> Row {
    Row { title, panels }
}

/// How many values of a variable can be chosen.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Exactly one value can be chosen.
    One,
    /// Any number, or all. All includes series without the label.
    Many,
}

/// A variable: the values of a label.
pub struct Variable {
    /// Name of the variable, without the `$`.
    pub name: &'static str,
    /// Text that is shown beside the variable.
    pub label: &'static str,
    /// Query that gives the variable's values: `label_values(...)`.
    pub query: String,
    /// How many values can be chosen.
    pub choice: Choice,
}

/// The values of a label of a series.
pub fn variable(
    name: &'static str,
    label: &'static str,
    choice: Choice,
    series: &str,
    of: &str,
) -> Variable {
    Variable {
        name,
        label,
        query: format!("label_values({series}, {of})"),
        choice,
    }
}

/// How a panel looks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// One number for each series.
    Stat,
    /// A line for each series.
    Lines,
    /// An area for each series, one on top of the other.
    Stacked,
    /// Buckets of a histogram over time.
    Heatmap,
    /// One line of a table for each series.
    Table,
}

/// A panel.
pub struct Panel {
    /// Its title, unique in its dashboard.
    pub title: &'static str,
    /// What it shows and how to read it.
    pub description: &'static str,
    /// Grafana's name of the unit.
    pub unit: &'static str,
    /// How it looks.
    pub look: Look,
    /// Queries with the legend of each.
    pub queries: Vec<(String, &'static str)>,
    width: u32,
    drill: bool,
}

fn panel(
    look: Look,
    width: u32,
    title: &'static str,
    unit: &'static str,
    description: &'static str,
) -> Panel {
    Panel {
        title,
        description,
        unit,
        look,
        queries: Vec::new(),
        width,
        drill: false,
    }
}

/// Makes a panel of numbers.
pub fn stat(title: &'static str, unit: &'static str, description: &'static str) -> Panel {
    panel(Look::Stat, 4, title, unit, description)
}

/// Makes a panel of lines.
pub fn lines(title: &'static str, unit: &'static str, description: &'static str) -> Panel {
    panel(Look::Lines, 8, title, unit, description)
}

/// Makes a panel of stacked areas.
pub fn stacked(title: &'static str, unit: &'static str, description: &'static str) -> Panel {
    panel(Look::Stacked, 8, title, unit, description)
}

/// Makes a heatmap of a histogram of seconds.
pub fn heatmap(title: &'static str, description: &'static str) -> Panel {
    panel(Look::Heatmap, 8, title, "s", description)
}

/// Makes a table.
pub fn table(title: &'static str, unit: &'static str, description: &'static str) -> Panel {
    panel(Look::Table, 8, title, unit, description)
}

impl Panel {
    /// Adds a query and the legend of its series.
    pub fn query(mut self, query: impl Into<String>, legend: &'static str) -> Self {
        self.queries.push((query.into(), legend));
        self
    }

    /// Sets the width in columns of the grid.
    pub fn width(mut self, columns: u32) -> Self {
        self.width = columns;
        self
    }

    /// Links each series to the dashboard of its container.
    pub fn drill(mut self) -> Self {
        self.drill = true;
        self
    }

    fn height(&self) -> u32 {
        if self.look == Look::Stat { 4 } else { 8 }
    }

    fn json(&self, id: u32, (x, y): (u32, u32)) -> Value {
        let targets: Vec<Value> = self
            .queries
            .iter()
            .zip('A'..)
            .map(|((query, legend), letter)| self.target(query, legend, letter))
            .collect();
        let (kind, options) = self.options();
        let mut panel = json!({
            "id": id,
            "type": kind,
            "title": self.title,
            "description": self.description,
            "datasource": source(),
            "gridPos": { "x": x, "y": y, "w": self.width, "h": self.height() },
            "targets": targets,
            "options": options,
            "fieldConfig": { "defaults": self.defaults(), "overrides": [] },
        });
        if self.look == Look::Table {
            let hidden = json!({ "Time": true });
            panel["transformations"] = json!([
                { "id": "organize", "options": { "excludeByName": hidden } },
            ]);
        }
        panel
    }

    fn target(&self, query: &str, legend: &str, letter: char) -> Value {
        let at_once = matches!(self.look, Look::Stat | Look::Table);
        let format = match self.look {
            Look::Heatmap => "heatmap",
            Look::Table => "table",
            _ => "time_series",
        };
        json!({
            "refId": letter.to_string(),
            "datasource": source(),
            "expr": query,
            "legendFormat": legend,
            "format": format,
            "instant": at_once,
            "range": !at_once,
        })
    }

    fn defaults(&self) -> Value {
        let fill = if self.look == Look::Stacked { 40 } else { 5 };
        let mut defaults = json!({ "unit": self.unit });
        if matches!(self.look, Look::Lines | Look::Stacked) {
            let stacking = if self.look == Look::Stacked {
                "normal"
            } else {
                "none"
            };
            defaults["min"] = json!(0);
            defaults["custom"] = json!({
                "drawStyle": "line",
                "lineWidth": 1,
                "fillOpacity": fill,
                "showPoints": "never",
                "stacking": { "mode": stacking, "group": "A" },
            });
        }
        if self.drill {
            // Labels become columns.
            let labels = match self.look {
                Look::Table => "__data.fields",
                _ => "__field.labels",
            };
            defaults["links"] = json!([{
                "title": "The container",
                "url": format!(
                    "/d/cgmeter-container?${{__url_time_range}}&${{datasource:queryparam}}\
                     &var-instance=${{{labels}.instance}}&var-id=${{{labels}.id}}"
                ),
            }]);
        }
        defaults
    }

    fn options(&self) -> (&'static str, Value) {
        match self.look {
            Look::Stat => (
                "stat",
                json!({
                    "reduceOptions": { "calcs": ["lastNotNull"], "fields": "", "values": false },
                    "colorMode": "none",
                    "graphMode": "none",
                    "textMode": "auto",
                }),
            ),
            Look::Lines | Look::Stacked => (
                "timeseries",
                json!({
                    "legend": { "displayMode": "list", "placement": "bottom", "showLegend": true },
                    "tooltip": { "mode": "multi", "sort": "desc" },
                }),
            ),
            Look::Heatmap => (
                "heatmap",
                json!({
                    "calculate": false,
                    "cellGap": 1,
                    "color": { "mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5 },
                    "filterValues": { "le": 1e-9 },
                    "rowsFrame": { "layout": "auto" },
                    "tooltip": { "mode": "single", "yHistogram": true },
                    "yAxis": { "axisPlacement": "left", "unit": self.unit },
                }),
            ),
            Look::Table => (
                "table",
                json!({
                    "showHeader": true,
                    "sortBy": [{ "displayName": "Value", "desc": true }],
                }),
            ),
        }
    }
}

fn source() -> Value {
    json!({ "type": "prometheus", "uid": "${datasource}" })
}

impl Variable {
    fn json(&self) -> Value {
        let many = self.choice == Choice::Many;
        let mut variable = json!({
            "name": self.name,
            "label": self.label,
            "type": "query",
            "datasource": source(),
            "definition": self.query,
            "query": { "query": self.query, "refId": self.name },
            "refresh": 2,
            "sort": 1,
            "multi": many,
            "includeAll": many,
            "hide": 0,
        });
        if many {
            // Matches series without the label, too.
            variable["allValue"] = json!(".*");
            variable["current"] = json!({ "text": ["All"], "value": ["$__all"] });
        }
        variable
    }
}

impl Dashboard {
    /// The text of its file.
    pub fn text(&self) -> String {
        let mut text = format!("{:#}", self.json());
        text.push('\n');
        text
    }

    /// Its JSON model in Grafana.
    pub fn json(&self) -> Value {
        let mut variables = vec![json!({
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
            "refresh": 1,
            "hide": 0,
        })];
        variables.extend(self.variables.iter().map(Variable::json));
        json!({
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["cgmeter"],
            "schemaVersion": SCHEMA,
            "editable": true,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": { "from": "now-1h", "to": "now" },
            "timezone": "browser",
            "annotations": { "list": [] },
            "links": [{
                "title": "cgmeter",
                "type": "dashboards",
                "tags": ["cgmeter"],
                "asDropdown": true,
                "includeVars": true,
                "keepTime": true,
            }],
            "templating": { "list": variables },
            "panels": self.panels(),
        })
    }

    fn panels(&self) -> Vec<Value> {
        let (mut panels, mut top) = (Vec::new(), 0);
        for row in &self.rows {
            panels.push(json!({
                "id": panels.len() + 1,
                "type": "row",
                "title": row.title,
                "collapsed": false,
                "panels": [],
                "gridPos": { "x": 0, "y": top, "w": COLUMNS, "h": 1 },
            }));
            top += 1;
            let (mut x, mut height) = (0, 0);
            for panel in &row.panels {
                if x + panel.width > COLUMNS {
                    top += height;
                    (x, height) = (0, 0);
                }
                panels.push(panel.json(panels.len() as u32 + 1, (x, top)));
                x += panel.width;
                height = height.max(panel.height());
            }
            top += height;
        }
        panels
    }
}
