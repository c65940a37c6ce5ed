//! The spool on a disk that fails at any moment, and beside a model of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test that fails fails"
)]

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    io,
    os::unix::fs::FileExt as _,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use profiler_agent::{
    export::otlp::parcel::{Compression, Parcel},
    spool::{Disk, Folder, FolderError, Options, ReadError, Spool, segment::HEADER_LEN},
};
use proptest::prelude::*;
use prost::bytes::Bytes;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt as _},
};

/// A request that is told apart from others by its number.
fn parcel(number: u64, size: usize) -> Parcel {
    Parcel {
        body: Bytes::from(vec![u8::try_from(number % 251).unwrap(); size]),
        compression: Compression::Gzip,
        length: size * 3,
        events: number,
        profiles: 1,
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// One operation fails; a write leaves half of it.
    Once,
    /// From here on all operations that change something fail: the disk is full, or broken.
    Always,
    /// The same, and nothing is begun: whether a name is there is not even looked at.
    ReadOnly,
    /// The process is killed; what it has handed to the kernel stays.
    Kill,
    /// The power fails: what was not synced is gone, or half there.
    Power,
}

/// Bytes as they are, and as they are on the disk; names likewise.
#[derive(Debug, Default)]
struct State {
    files: BTreeMap<u64, (Vec<u8>, Vec<u8>)>,
    names: BTreeMap<String, u64>,
    names_on_disk: BTreeMap<String, u64>,
    next: u64,
    operations: usize,
    fault: Option<(usize, Fault)>,
    dead: bool,
    /// The file that cannot be read.
    unreadable: Option<String>,
}

impl State {
    /// Counts an operation; whether it goes wrong.
    fn operate(&mut self) -> Option<Fault> {
        if self.dead {
            return Some(Fault::Kill);
        }
        let number = self.operations;
        self.operations += 1;
        let (at, fault) = self.fault?;
        let happens = match fault {
            Fault::Always | Fault::ReadOnly => number >= at,
            Fault::Once | Fault::Kill | Fault::Power => number == at,
        };
        if happens && matches!(fault, Fault::Kill | Fault::Power) {
            self.dead = true;
        }
        happens.then_some(fault)
    }

    /// As it is found after the fault.
    fn restart(&mut self) {
        if self.fault.is_some_and(|(_, fault)| fault == Fault::Power) {
            self.names = self.names_on_disk.clone();
            for (bytes, on_disk) in self.files.values_mut() {
                *bytes = on_disk.clone();
            }
        }
        self.fault = None;
        self.dead = false;
    }
}

#[derive(Debug, Clone, Default)]
struct Simulated(Rc<RefCell<State>>);

fn broken() -> io::Error {
    io::Error::from(io::ErrorKind::StorageFull)
}

impl Disk for Simulated {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let state = self.0.borrow();
        let size = |file: &u64| state.files[file].0.len() as u64;
        Ok(state
            .names
            .iter()
            .map(|(name, file)| (name.clone(), size(file)))
            .collect())
    }

    fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        let state = self.0.borrow();
        if state.unreadable.as_deref() == Some(name) {
            return Err(io::Error::from_raw_os_error(5));
        }
        let file = state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        let bytes = &state.files[file].0;
        Ok(bytes[..bytes.len().min(usize::try_from(limit).unwrap())].to_vec())
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        let fault = state.operate();
        if fault == Some(Fault::ReadOnly) {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let failed = fault.is_some();
        let file = state.next;
        state.next += 1;
        let written = if failed { &bytes[..bytes.len() / 2] } else { bytes };
        // Without a sync half of it may be there after a loss of power.
        state
            .files
            .insert(file, (written.to_vec(), bytes[..bytes.len() / 3].to_vec()));
        state.names.insert(name.to_owned(), file);
        // A name may come to the disk earlier than it must.
        state.names_on_disk.insert(name.to_owned(), file);
        if failed { Err(broken()) } else { Ok(()) }
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        if state.operate().is_some() {
            return Err(broken());
        }
        let file = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        let entry = state.files.get_mut(&file).unwrap();
        entry.1 = entry.0.clone();
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        if state.operate().is_some() {
            return Err(broken());
        }
        let file = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        if state.operate().is_some() {
            return Err(broken());
        }
        state
            .names
            .remove(name)
            .map(|_| ())
            .ok_or(io::ErrorKind::NotFound.into())
    }

    fn sync_names(&mut self) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        if state.operate().is_some() {
            return Err(broken());
        }
        state.names_on_disk = state.names.clone();
        Ok(())
    }
}

/// What the spool has promised when the script ended, early or not.
#[derive(Debug, Default)]
struct Promised {
    kept: Vec<u64>,
    /// Whose removal has returned.
    removed: Vec<u64>,
    /// What was being pushed or removed when it died.
    in_doubt: Option<u64>,
    refused: Vec<u64>,
}

/// Six requests come, every second one is acknowledged.
fn script(disk: &Simulated) -> Promised {
    let mut promised = Promised::default();
    let (mut spool, _) = Spool::on(disk.clone(), 1 << 20).unwrap();
    let dead = || disk.0.borrow().dead;
    for number in 1..=6 {
        let pushed = spool.push(&parcel(number, 100), None);
        if dead() {
            promised.in_doubt = Some(number);
            return promised;
        }
        match pushed {
            Ok((_, dropped)) => {
                assert_eq!(dropped, 0);
                promised.kept.push(number);
            }
            Err(_) => promised.refused.push(number),
        }
        if number % 2 == 0
            && let Some(oldest) = spool.oldest()
        {
            let events = oldest.parcel.unwrap().events;
            promised.kept.retain(|kept| *kept != events);
            spool.remove(oldest.id);
            if dead() {
                promised.in_doubt = Some(events);
                return promised;
            }
            promised.removed.push(events);
        }
    }
    assert_eq!(spool.events(), promised.kept.iter().sum::<u64>());
    promised
}

/// What a spool holds, in order, and how much of it cannot be read.
fn contents(disk: &Simulated) -> Vec<u64> {
    let (mut spool, found) = Spool::on(disk.clone(), 1 << 20).unwrap();
    assert_eq!(found.events, spool.events());
    let mut numbers = Vec::new();
    while let Some(oldest) = spool.oldest() {
        let read = oldest.parcel.unwrap();
        assert_eq!(read, parcel(read.events, 100));
        numbers.push(read.events);
        spool.remove(oldest.id);
    }
    assert!(disk.list().unwrap().is_empty(), "nothing stays behind");
    numbers
}

#[test]
fn whatever_fails_when_ever_nothing_that_was_promised_is_lost() {
    let healthy = Simulated::default();
    script(&healthy);
    let operations = healthy.0.borrow().operations;
    assert_eq!(operations, 6 * 4 + 3 * 2);
    for fault in [
        Fault::Once,
        Fault::Always,
        Fault::ReadOnly,
        Fault::Kill,
        Fault::Power,
    ] {
        for at in 0..operations {
            let disk = Simulated::default();
            disk.0.borrow_mut().fault = Some((at, fault));
            let promised = script(&disk);
            disk.0.borrow_mut().restart();
            let found = contents(&disk);
            let context = format!("{fault:?} at {at}: {promised:?}, found {found:?}");
            assert!(found.is_sorted(), "{context}");
            for number in &promised.kept {
                assert!(found.contains(number), "{context}");
            }
            let mut extra: Vec<u64> = found;
            extra.retain(|number| !promised.kept.contains(number));
            match fault {
                // A removal that fails is tried again with the next one; the last one had no next.
                Fault::Once => assert!(
                    extra.is_empty() || (extra == [3] && at >= operations - 2),
                    "{context}"
                ),
                // What a dead disk does not let go is there again after a restart: sent twice, not lost.
                Fault::Always | Fault::ReadOnly => assert!(
                    extra
                        .iter()
                        .all(|number| promised.removed.contains(number) || promised.refused.contains(number)),
                    "{context}"
                ),
                Fault::Kill | Fault::Power => {
                    assert!(
                        extra.iter().all(|number| promised.in_doubt == Some(*number)),
                        "{context}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_the_disk_does_not_give_at_the_start_costs_itself_at_most() {
    let disk = Simulated::default();
    let (mut spool, _) = Spool::on(disk.clone(), 1 << 20).unwrap();
    for number in [10, 20, 30] {
        spool.push(&parcel(number, 10), None).unwrap();
    }
    drop(spool);
    let second = disk.list().unwrap().remove(1).0;
    disk.0.borrow_mut().unreadable = Some(second);
    let (mut spool, found) = Spool::on(disk.clone(), 1 << 20).unwrap();
    // The samples of the second are counted as one.
    assert_eq!((found.events, spool.events(), spool.len()), (41, 41, 3));
    let first = spool.oldest().unwrap();
    assert_eq!(first.parcel.unwrap(), parcel(10, 10));
    spool.remove(first.id);
    let second = spool.oldest().unwrap();
    assert!(
        matches!(second.parcel, Err(ReadError::Io(_))),
        "{:?}",
        second.parcel
    );
    assert_eq!((second.events, disk.list().unwrap().len()), (1, 2));

    // It may be that it can be read after all.
    disk.0.borrow_mut().unreadable = None;
    let second = spool.oldest().unwrap().parcel.unwrap();
    assert_eq!((second.body, second.events), (parcel(20, 10).body, 1));
}

/// Counts warnings.
struct Warnings(Arc<AtomicUsize>);

impl<S: Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() <= Level::WARN {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_disk_that_becomes_read_only_is_asked_once_for_each_and_told_of_seldom() {
    let disk = Simulated::default();
    let operations = || disk.0.borrow().operations;
    let (mut spool, _) = Spool::on(disk.clone(), 1 << 20).unwrap();
    for number in 0..50 {
        spool.push(&parcel(number, 10), None).unwrap();
    }
    let warnings = Arc::new(AtomicUsize::new(0));
    let told = || warnings.load(Ordering::Relaxed);
    let subscriber = tracing_subscriber::registry().with(Warnings(Arc::clone(&warnings)));
    tracing::subscriber::with_default(subscriber, || {
        let before = operations();
        disk.0.borrow_mut().fault = Some((before, Fault::ReadOnly));
        for number in 0..500 {
            spool.push(&parcel(number, 10), None).unwrap_err();
        }
        // What was to be written, and the removal of what might have come of it.
        assert_eq!((operations() - before, told()), (1000, 0));
        for id in spool.ids() {
            spool.remove(id);
        }
        assert_eq!(operations() - before, 1050);
        // Of the first, and of the tenth.
        assert_eq!(told(), 2);
        assert_eq!(disk.list().unwrap().len(), 50);

        disk.0.borrow_mut().fault = None;
        let (id, _) = spool.push(&parcel(1, 10), None).unwrap();
        assert_eq!(disk.list().unwrap().len(), 51);
        spool.remove(id);
        assert_eq!(disk.list().unwrap(), [], "with the one that goes, all go");
        assert_eq!(told(), 2);
    });
}

#[derive(Debug, Clone)]
enum Step {
    Push(usize),
    Acknowledge,
    Reopen,
    /// One byte of some segment is changed.
    Corrupt(prop::sample::Index, prop::sample::Index),
    Cut(prop::sample::Index, prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    use prop::sample::Index;
    prop_oneof![
        5 => (0..3000_usize).prop_map(Step::Push),
        3 => Just(Step::Acknowledge),
        1 => Just(Step::Reopen),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(file, byte)| Step::Corrupt(file, byte)),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(file, len)| Step::Cut(file, len)),
    ]
}

/// A request in the model.
#[derive(Debug)]
struct Modelled {
    parcel: Parcel,
    whole: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// In a real folder: order, limit, counts, and what damage costs.
    #[test]
    fn is_what_its_model_is(steps in prop::collection::vec(step(), 1..60)) {
        const LIMIT: u64 = 40_000;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v");
        let open = || Spool::on(Folder::open(&path).unwrap(), LIMIT).unwrap();
        let (mut spool, _) = open();
        let mut model: VecDeque<Modelled> = VecDeque::new();
        let cost = |parcel: &Parcel| (parcel.body.len() + HEADER_LEN + 4096) as u64;
        for (number, step) in (1..).zip(steps) {
            match step {
                Step::Push(size) => {
                    let parcel = parcel(number, size);
                    let mut expected = 0;
                    while model.iter().map(|m| cost(&m.parcel)).sum::<u64>() + cost(&parcel) > LIMIT {
                        expected += model.pop_front().unwrap().parcel.events;
                    }
                    let (_, dropped) = spool.push(&parcel, None).unwrap();
                    prop_assert_eq!(dropped, expected);
                    model.push_back(Modelled { parcel, whole: true });
                }
                Step::Acknowledge => match (spool.oldest(), model.pop_front()) {
                    (Some(oldest), Some(modelled)) => {
                        prop_assert_eq!(oldest.events, modelled.parcel.events);
                        prop_assert_eq!(oldest.parcel.is_ok(), modelled.whole);
                        if modelled.whole {
                            prop_assert_eq!(oldest.parcel.unwrap(), modelled.parcel);
                        }
                        spool.remove(oldest.id);
                    }
                    (None, None) => {}
                    (oldest, modelled) => panic!("{oldest:?} is not {modelled:?}"),
                },
                Step::Reopen => {
                    drop(spool);
                    let found;
                    (spool, found) = open();
                    prop_assert_eq!(found.events, model.iter().map(|m| m.parcel.events).sum::<u64>());
                }
                Step::Corrupt(which, byte) => {
                    // Headers are checked when the spool is opened, bodies when they are read: here bodies.
                    let bodies = files(&path);
                    let Some(which) = (!bodies.is_empty()).then(|| which.index(bodies.len())) else { continue };
                    let size = model[which].parcel.body.len();
                    if size == 0 {
                        continue;
                    }
                    let at = (HEADER_LEN + byte.index(size)) as u64;
                    let file = std::fs::File::options().read(true).write(true).open(&bodies[which]).unwrap();
                    let mut old = [0];
                    file.read_exact_at(&mut old, at).unwrap();
                    file.write_all_at(&[old[0] ^ 0x10], at).unwrap();
                    // Twice the same bit is as if nothing was.
                    let bytes = read(&bodies[which]);
                    model[which].whole = bytes[HEADER_LEN..] == model[which].parcel.body[..];
                }
                Step::Cut(which, len) => {
                    let bodies = files(&path);
                    let Some(which) = (!bodies.is_empty()).then(|| which.index(bodies.len())) else { continue };
                    let size = usize::try_from(std::fs::metadata(&bodies[which]).unwrap().len()).unwrap();
                    if size == HEADER_LEN {
                        continue;
                    }
                    let keep = (HEADER_LEN + len.index(size - HEADER_LEN)) as u64;
                    std::fs::File::options().write(true).open(&bodies[which]).unwrap().set_len(keep).unwrap();
                    model[which].whole = false;
                    // What was there before the cut is what it costs until the spool is opened again.
                    drop(spool);
                    spool = open().0;
                    model[which].parcel.body = model[which].parcel.body.slice(..usize::try_from(keep).unwrap() - HEADER_LEN);
                }
            }
            prop_assert_eq!(spool.len(), model.len());
            prop_assert_eq!(spool.bytes(), model.iter().map(|m| cost(&m.parcel)).sum::<u64>());
            prop_assert!(spool.bytes() <= LIMIT);
        }
    }
}

/// Segments, oldest first.
fn files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "segment"))
        .collect();
    files.sort();
    files
}

#[expect(clippy::disallowed_methods, reason = "a file of this test")]
fn read(path: &std::path::Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[test]
fn one_agent_at_a_time_and_other_versions_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        folder: folder.path().join("spool"),
        limit: 1 << 20,
    };
    let other = options.folder.join("v9");
    std::fs::create_dir_all(&other).unwrap();
    std::fs::write(other.join("0000000000000000.segment"), "another layout").unwrap();
    let (mut spool, found) = Spool::open(&options).unwrap();
    assert_eq!(found, profiler_agent::spool::Found::default());
    spool.push(&parcel(7, 10), None).unwrap();
    let taken = Spool::open(&options).unwrap_err();
    assert!(matches!(taken, FolderError::Taken(_)), "{taken}");
    assert!(taken.to_string().contains("--spool"), "{taken}");
    drop(spool);

    // What is no segment of ours: not read, and not removed unless it has such a name.
    let ours = options.folder.join("v1");
    std::fs::write(ours.join("README"), "hello").unwrap();
    std::fs::write(ours.join("00000000000000ff.segment"), "garbage").unwrap();
    std::fs::write(ours.join("00000000000000fe.new"), "half of it").unwrap();
    let (mut spool, found) = Spool::open(&options).unwrap();
    // How many samples are in garbage nobody knows.
    assert_eq!((found.events, found.unfinished), (7 + 1, 1));
    let (id, _) = spool.push(&parcel(8, 10), None).unwrap();
    assert_eq!(spool.oldest().unwrap().events, 7);
    // To make room, not even the oldest is dropped when it is on its way.
    let first = spool.oldest().unwrap().id;
    assert!(first < id);
    let (_, dropped) = spool
        .push(&parcel(9, (1 << 20) - 4096 - 4096 - 4096), Some(first))
        .unwrap();
    assert_eq!(dropped, 1 + 8);
    assert!(other.join("0000000000000000.segment").exists());
    assert!(ours.join("README").exists());
    assert!(!ours.join("00000000000000ff.segment").exists());
    assert!(!ours.join("00000000000000fe.new").exists());
}

#[test]
fn a_folder_that_cannot_be_made_says_so() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let error = Folder::open(&folder.path().join("file/spool")).unwrap_err();
    assert!(error.to_string().contains("choose another folder"), "{error}");
}
