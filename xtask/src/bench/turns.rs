//! Measuring several agents in turn.

use anyhow::Result;
use serde_json::{Value, json};

use super::{agent::Binary, median};

/// Measures each agent so many times, in alternating order, and returns the rows of each with the
/// medians of their numbers. Rows of one agent are matched by their texts, such as the program's name: one that did not run
/// in a round has no row there.
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
        let mut all: Vec<&Value> = rounds.iter().flatten().collect();
        while let Some(first) = all.first().copied() {
            let (same, others) = all.into_iter().partition(|row| texts(row) == texts(first));
            all = others;
            let same: Vec<&Value> = same;
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

/// What a row is about.
fn texts(row: &Value) -> Vec<&str> {
    let members = row.as_object().into_iter().flatten();
    members.filter_map(|(_, value)| value.as_str()).collect()
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

    #[test]
    fn a_program_that_did_not_run_in_a_round_takes_no_other_s_place() {
        let binaries = [Binary {
            name: "now",
            path: "now".into(),
        }];
        let rounds = RefCell::new(vec![
            vec![json!({"program": "b", "ns": 20.0})],
            vec![
                json!({"program": "a", "ns": 1.0}),
                json!({"program": "b", "ns": 22.0}),
            ],
        ]);
        let rows = measure(&binaries, 2, |_| Ok(rounds.borrow_mut().pop().unwrap()));
        assert_eq!(
            rows.unwrap(),
            [
                json!({"program": "a", "ns": 1.0, "agent": "now"}),
                json!({"program": "b", "ns": 22.0, "agent": "now"}),
            ]
        );
    }
}
