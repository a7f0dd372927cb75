//! Measuring several agents in turn.

use anyhow::Result;
use serde_json::{Value, json};

use super::{agent::Binary, median};

/// Measures each agent so many times, in alternating order, and returns the rows of each with the
/// medians of their numbers. Rows of one agent are matched by their place.
pub fn measure(
    binaries: &[Binary],
    rounds: usize,
    measure: impl Fn(&Binary) -> Result<Vec<Value>>,
) -> Result<Vec<Value>> {
    let mut found = vec![Vec::new(); binaries.len()];
    for round in 0..rounds {
        for at in order(binaries.len(), round) {
            found[at].push(measure(&binaries[at])?);
        }
    }
    let mut rows = Vec::new();
    for (binary, rounds) in binaries.iter().zip(found) {
        let count = rounds.iter().map(Vec::len).min().unwrap_or(0);
        for place in 0..count {
            let same: Vec<&Value> = rounds.iter().map(|round| &round[place]).collect();
            let mut row = medians(&same);
            row["agent"] = json!(binary.name);
            rows.push(row);
        }
    }
    Ok(rows)
}

/// The places of so many agents in a round: forwards, then backwards.
pub fn order(count: usize, round: usize) -> Vec<usize> {
    let forwards = 0..count;
    match round % 2 {
        0 => forwards.collect(),
        _ => forwards.rev().collect(),
    }
}

/// The first row, with each number replaced by its median over all rows.
fn medians(rows: &[&Value]) -> Value {
    let mut merged = rows.first().map_or(Value::Null, |&row| row.clone());
    for (key, value) in merged.as_object_mut().into_iter().flatten() {
        let numbers: Vec<f64> = rows.iter().filter_map(|row| row[key].as_f64()).collect();
        if value.is_number() && rows.len() > 1 {
            *value = json!(median(numbers));
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn agents_take_turns_and_rows_have_medians() {
        let binaries = ["before", "now"].map(|name| Binary {
            name,
            path: name.into(),
        });
        let seen = RefCell::new(Vec::new());
        let rows = measure(&binaries, 3, |binary| {
            seen.borrow_mut().push(binary.name);
            let turn = seen.borrow().len() as f64;
            Ok(vec![json!({"program": "p", "ns": turn})])
        });
        let order = ["before", "now", "now", "before", "before", "now"];
        assert_eq!(*seen.borrow(), order);
        assert_eq!(
            rows.unwrap(),
            [
                json!({"program": "p", "ns": 4.0, "agent": "before"}),
                json!({"program": "p", "ns": 3.0, "agent": "now"}),
            ]
        );
    }
}
