use super::*;

/// A directory with a target, and what was loaded beside it.
struct Place {
    dir: tempfile::TempDir,
    replacement: Replacement,
}

impl Place {
    fn new(target: &str, beside: &str, scope: Scope) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (target, beside) = (dir.path().join(target), dir.path().join(beside));
        Self { dir, replacement: Replacement { target, beside, scope } }
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// All files with their content, but those beside the target.
    fn seen(&self) -> Vec<String> {
        let mut seen = Vec::new();
        let mut waiting = vec![self.dir.path().to_owned()];
        while let Some(path) = waiting.pop() {
            if path == self.replacement.beside {
                continue;
            }
            if path.is_dir() {
                waiting.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            } else {
                let name = path.strip_prefix(self.dir.path()).unwrap();
                seen.push(format!("{}={}", name.display(), fs::read_to_string(&path).unwrap()));
            }
        }
        seen.sort();
        seen
    }

    fn swap(&self, direction: Direction) -> Swap {
        Swap::plan(self.replacement.clone(), direction).unwrap()
    }
}

fn database() -> Place {
    let companions = vec!["-wal".to_owned(), "-shm".to_owned()];
    let place = Place::new("app.db", ".app.db.backstay-1", Scope::Whole { companions });
    place.write("app.db", "old");
    place.write("app.db-wal", "old log");
    place.replacement.prepare().unwrap();
    place.write(".app.db.backstay-1/restored/app.db", "new");
    place
}

fn entries() -> Place {
    let place = Place::new("shop", "shop/.backstay-1", Scope::Entries);
    place.write("shop/both", "old");
    place.write("shop/gone/x", "old");
    place.replacement.prepare().unwrap();
    place.write("shop/.backstay-1/restored/both", "new");
    place.write("shop/.backstay-1/restored/come/y", "new");
    place
}

fn paths() -> Place {
    let chosen = ["a/both", "a/come/y", "missing/z"].map(PathBuf::from).to_vec();
    let place = Place::new("shop", "shop/.backstay-1", Scope::Paths(chosen));
    place.write("shop/a/both", "old");
    place.write("shop/a/other", "mine");
    place.replacement.prepare().unwrap();
    for name in ["a/both", "a/come/y", "missing/z"] {
        place.write(&format!("shop/.backstay-1/restored/{name}"), "new");
    }
    place
}

/// How a place is made, what is seen in it before, and what after.
type Case = (fn() -> Place, &'static [&'static str], &'static [&'static str]);

const CASES: [Case; 3] = [
    (database, &["app.db-wal=old log", "app.db=old"], &["app.db=new"]),
    (entries, &["shop/both=old", "shop/gone/x=old"], &["shop/both=new", "shop/come/y=new"]),
    (
        paths,
        &["shop/a/both=old", "shop/a/other=mine"],
        &["shop/a/both=new", "shop/a/come/y=new", "shop/a/other=mine", "shop/missing/z=new"],
    ),
];

#[test]
fn what_is_swapped_in_can_be_undone_and_done_again() {
    for (make, old, new) in CASES {
        let place = make();
        assert_eq!(place.seen(), old);
        place.swap(Direction::Restore).run().unwrap();
        assert_eq!(place.seen(), new);
        place.swap(Direction::Undo).run().unwrap();
        assert_eq!(place.seen(), old);
        place.swap(Direction::Restore).run().unwrap();
        assert_eq!(place.seen(), new);
        place.replacement.discard().unwrap();
        assert_eq!(place.seen(), new);
        assert!(!place.replacement.beside.exists());
    }
}

#[test]
fn swap_that_stopped_after_any_step_is_finished_or_rolled_back() {
    for (make, old, new) in CASES {
        let steps = make().swap(Direction::Restore).steps.len();
        for done in 0..=steps {
            let finished = make();
            let swap = finished.swap(Direction::Restore);
            swap.steps.iter().take(done).for_each(|step| step.run().unwrap());
            swap.run().unwrap();
            assert_eq!(finished.seen(), new, "finished after {done} steps");
            let back = make();
            let swap = back.swap(Direction::Restore);
            swap.steps.iter().take(done).for_each(|step| step.run().unwrap());
            swap.roll_back().unwrap();
            assert_eq!(back.seen(), old, "rolled back after {done} steps");
        }
    }
}

#[test]
fn exchange_in_three_renames_goes_on_wherever_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let (place, other) = (dir.path().join("place"), dir.path().join("other"));
    let parked = with(&other, PARKED);
    for moves in [vec![], vec![(&place, &parked)], vec![(&place, &parked), (&other, &place)]] {
        fs::write(&place, "old").unwrap();
        fs::write(&other, "new").unwrap();
        moves.iter().for_each(|(from, to)| fs::rename(from, to).unwrap());
        exchange_in_three(&place, &other).unwrap();
        assert_eq!(fs::read_to_string(&place).unwrap(), "new", "after {} renames", moves.len());
        assert_eq!(fs::read_to_string(&other).unwrap(), "old");
        assert!(!parked.exists());
    }
}

#[test]
fn log_that_the_app_wrote_since_goes_aside_with_its_database() {
    let place = database();
    place.swap(Direction::Restore).run().unwrap();
    place.write("app.db-wal", "log of the restored one");
    place.swap(Direction::Undo).run().unwrap();
    assert_eq!(place.seen(), ["app.db-wal=old log", "app.db=old"]);
    place.swap(Direction::Restore).run().unwrap();
    assert_eq!(place.seen(), ["app.db-wal=log of the restored one", "app.db=new"]);
}

#[test]
fn nothing_is_replaced_behind_a_link() {
    let place = Place::new("shop", "shop/.backstay-1", Scope::Paths(vec!["link/x".into()]));
    place.write("elsewhere/x", "of others");
    fs::create_dir(place.dir.path().join("shop")).unwrap();
    std::os::unix::fs::symlink("../elsewhere", place.dir.path().join("shop/link")).unwrap();
    place.replacement.prepare().unwrap();
    place.write("shop/.backstay-1/restored/link/x", "new");
    let refused = Swap::plan(place.replacement.clone(), Direction::Restore).unwrap_err();
    assert!(refused.to_string().contains("cannot go through"), "{refused}");
}

#[test]
fn only_an_empty_directory_or_nothing_counts_as_nothing() {
    let place = database();
    place.swap(Direction::Restore).run().unwrap();
    assert!(!place.replacement.replaced_nothing());
    let empty = Place::new("shop", ".shop.backstay-1", Scope::Whole { companions: Vec::new() });
    fs::create_dir(empty.dir.path().join("shop")).unwrap();
    empty.replacement.prepare().unwrap();
    empty.write(".shop.backstay-1/restored/shop/x", "new");
    empty.swap(Direction::Restore).run().unwrap();
    assert!(empty.replacement.replaced_nothing());
}
