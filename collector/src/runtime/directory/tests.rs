use super::*;

fn container(id: String) -> Container {
    Container {
        state: State::Running,
        ..Container::new(id, Runtime::DOCKER)
    }
}

#[test]
fn the_directory_is_bounded_in_records_and_bytes() {
    let (directory, _) = Directory::new();
    for number in 0..=RECORDS {
        directory.put(container(number.to_string()));
    }
    assert_eq!(directory.refused(), 1);
    assert!(directory.get(&RECORDS.to_string()).is_none());
    directory.gone("7");
    let mut late = container("late".to_owned());
    late.labels.insert("a".to_owned(), "é".repeat(VALUE));
    directory.put(late);
    assert!(directory.get("7").is_none(), "it made room");
    assert_eq!(directory.get("late").unwrap().labels["a"].len(), VALUE);
}

#[test]
fn labels_that_weigh_too_much_cost_no_names() {
    let (directory, _) = Directory::new();
    let heavy = |number: usize| {
        let mut container = container(number.to_string());
        container.name = "n".repeat(NAME + 1);
        let labels = (0..VALUES).map(|label| (label.to_string(), "v".repeat(VALUE)));
        container.labels = labels.collect();
        container
    };
    let most = WEIGHT / weight(&heavy(0));
    for number in 0..=most {
        directory.put(heavy(number));
    }
    let labels = |number: usize| directory.get(&number.to_string()).unwrap().labels.len();
    assert_eq!((labels(most - 1), labels(most)), (VALUES, 0));
    let last = directory.get(&most.to_string()).unwrap();
    assert_eq!(last.name.len(), NAME);
    // Whoever goes makes room.
    directory.gone("0");
    directory.sweep(Duration::ZERO);
    directory.put(heavy(most));
    assert_eq!(labels(most), VALUES);
}

#[test]
fn the_gone_linger_and_keep_how_they_ended() {
    let (directory, _) = Directory::new();
    let mut ended = container("a".to_owned());
    ended.exit_code = Some(3);
    directory.put(ended);
    directory.put(container("a".to_owned()));
    assert_eq!(directory.get("a").unwrap().exit_code, Some(3));
    directory.gone("a");
    directory.sweep(Duration::from_secs(60));
    assert!(directory.get("a").is_some());
    let before = directory.changes();
    directory.sweep(Duration::ZERO);
    assert!(directory.get("a").is_none());
    assert!(directory.changes() > before);
}
