//! The images that a crash may leave, against those that the model gives when each is made by the book.

use std::collections::BTreeSet;

use super::*;
use crate::store::Disk;
use crate::testing::{Fault, SimDisk};

/// What was done, as the test did it: the oracle knows nothing of images, entries or windows.
#[derive(Clone)]
enum Done {
    Write(usize, Vec<u8>),
    SetLen(usize),
    Sync,
}

/// A random run; its operations as the recording counts them, with the lengthening of a write on its own.
fn random_run(rng: &mut fastrand::Rng, operations: usize) -> (SimDisk, Vec<Done>) {
    let disk = SimDisk::new();
    let mut done = Vec::new();
    let mut len = 0;
    while done.len() < operations {
        match rng.u8(0..6) {
            0 => {
                disk.sync().unwrap();
                done.push(Done::Sync);
            }
            1 => {
                len = rng.usize(0..12_000);
                disk.set_len(len as u64).unwrap();
                done.push(Done::SetLen(len));
            }
            _ => {
                let at = rng.usize(0..9000);
                let bytes = vec![rng.u8(1..); rng.usize(1..5000)];
                disk.write(at as u64, &bytes).unwrap();
                if at + bytes.len() > len {
                    len = at + bytes.len();
                    done.push(Done::SetLen(len));
                }
                done.push(Done::Write(at, bytes));
            }
        }
    }
    assert_eq!(disk.position(), done.len());
    (disk, done)
}

fn apply(done: &Done, bytes: &mut Vec<u8>) {
    match done {
        Done::Write(at, new) => {
            let end = bytes.len().min(at + new.len());
            if *at < end {
                bytes[*at..end].copy_from_slice(&new[..end - at]);
            }
        }
        Done::SetLen(len) => bytes.resize(*len, 0),
        Done::Sync => {}
    }
}

/// Every image at a position, by the book.
fn by_the_book(done: &[Done], position: usize) -> BTreeSet<Vec<u8>> {
    let durable = done[..position].iter().rposition(|done| matches!(done, Done::Sync)).map_or(0, |at| at + 1);
    let mut base = Vec::new();
    done[..durable].iter().for_each(|done| apply(done, &mut base));
    let open = &done[durable..position];
    let subset = |mask: u32| {
        let mut bytes = base.clone();
        (0..open.len()).filter(|at| mask >> at & 1 == 1).for_each(|at| apply(&open[at], &mut bytes));
        bytes
    };
    (0..1 << open.len()).map(subset).collect()
}

fn no_torn(seed: u64) -> Sampling {
    Sampling { torn: 0, ..Sampling::new(seed) }
}

#[test]
fn images_are_all_subsets_each_once() {
    let mut rng = fastrand::Rng::with_seed(2);
    let mut images = 0;
    for _ in 0..40 {
        let operations = rng.usize(1..12);
        let (disk, done) = random_run(&mut rng, operations);
        let run = disk.recording();
        for position in 0..=run.end() {
            let found: Vec<_> =
                run.images_at(position, &no_torn(1)).map(|crash| crash.image.to_bytes()).collect();
            let distinct: BTreeSet<_> = found.iter().cloned().collect();
            assert_eq!(found.len(), distinct.len(), "an image came twice");
            assert!(distinct == by_the_book(&done, position), "position {position}");
            images += found.len();
        }
        assert!(
            disk.image().to_bytes()
                == by_the_book(&[done, vec![Done::Sync]].concat(), run.end() + 1).pop_first().unwrap()
        );
    }
    assert!(images > 2000, "{images}");
}

/// All pairs of world and image that any crash can leave, against those of the moments; and the earliest
/// position of each image against the first position that has it.
#[test]
fn moments_cover_every_crash() {
    let mut rng = fastrand::Rng::with_seed(3);
    for _ in 0..30 {
        let (disk, done) = random_run(&mut rng, 9);
        let run = disk.recording();
        let mut outside: Vec<usize> = (0..rng.usize(0..4)).map(|_| rng.usize(0..=run.end())).collect();
        outside.sort_unstable();
        let moments = run.moments(&outside);
        let mut covered = BTreeSet::new();
        for moment in &moments {
            for crash in run.images_at(moment.position, &no_torn(1)) {
                let bytes = crash.image.to_bytes();
                assert!(by_the_book(&done, crash.earliest).contains(&bytes));
                covered.insert((moment.outside, bytes));
            }
        }
        let mut possible = BTreeSet::new();
        for position in 0..=run.end() {
            let images = by_the_book(&done, position);
            for world in 0..=outside.len() {
                let from = if world == 0 { 0 } else { outside[world - 1] };
                let until = outside.get(world).copied().unwrap_or(run.end());
                if (from..=until).contains(&position) {
                    possible.extend(images.iter().map(|image| (world, image.clone())));
                }
            }
        }
        assert!(covered == possible);
        assert!(moments.len() <= 10 + outside.len());
    }
}

#[test]
fn torn_writes_keep_any_sectors_whole() {
    let disk = SimDisk::new();
    disk.write(0, &[1; 8192]).unwrap();
    disk.sync().unwrap();
    disk.write(256, &[2; 4608]).unwrap();
    let run = disk.recording();
    let sampling = Sampling { torn: 3000, ..Sampling::new(4) };
    let mut patterns = BTreeSet::new();
    for crash in run.images_at(run.end(), &sampling) {
        let bytes = crash.image.to_bytes();
        let mut pattern = 0_u32;
        for (sector, content) in bytes.chunks(512).enumerate() {
            let of_write = |at: usize| (256..256 + 4608).contains(&(sector * 512 + at));
            let new = (0..512).all(|at| content[at] == if of_write(at) { 2 } else { 1 });
            let old = content.iter().all(|byte| *byte == 1);
            assert!(new || old, "sector {sector} is neither old nor new");
            pattern |= u32::from(!old) << sector;
        }
        patterns.insert(pattern);
    }
    assert_eq!(patterns.iter().next_back(), Some(&0b11_1111_1111), "ten sectors are touched");
    assert!(patterns.len() > 500, "{} of 1024 patterns", patterns.len());
    assert!(patterns.contains(&0b1) && patterns.contains(&0b11_1111_1110));
}

#[test]
fn points_are_replayed_from_their_text() {
    let mut rng = fastrand::Rng::with_seed(5);
    let mut kinds = BTreeSet::new();
    for operations in [6, 40] {
        let (disk, _) = random_run(&mut rng, operations);
        disk.inject(Fault::SyncsIgnored);
        for at in 0..30_u8 {
            disk.write(u64::from(at) * 100, &[at; 3000]).unwrap();
            disk.sync().unwrap();
        }
        let run = disk.recording();
        let sampling = Sampling { subsets: 50, torn: 50, ..Sampling::new(6) };
        for position in [run.end(), 5] {
            let images: Vec<_> = run.images_at(position, &sampling).collect();
            let again: Vec<_> = run.images_at(position, &sampling).map(|crash| crash.image.hash()).collect();
            assert_eq!(images.iter().map(|crash| crash.image.hash()).collect::<Vec<_>>(), again);
            for crash in images {
                let text = crash.point.to_string();
                kinds.insert(text.split(':').nth(1).unwrap().to_owned());
                let replayed = run.image(&text.parse().unwrap()).unwrap();
                assert_eq!(
                    (replayed.image.hash(), replayed.earliest),
                    (crash.image.hash(), crash.earliest),
                    "{text}"
                );
                assert!(
                    run.describe(&crash.point)
                        .starts_with(&format!("at position {position} of {}", run.end()))
                );
            }
        }
    }
    assert_eq!(
        kinds.into_iter().collect::<Vec<_>>(),
        ["only", "prefix", "random", "subset", "torn", "without"]
    );
    let (disk, _) = random_run(&mut rng, 3);
    assert!(disk.recording().image(&"4:subset:0".parse().unwrap()).is_none());
    for bad in ["", "1", "1:subset", "1:subset:g", "x:only:1", "1:only:-1", "1:all:1"] {
        assert!(bad.parse::<CrashPoint>().is_err(), "{bad}");
    }
}

#[test]
fn point_is_told_in_words() {
    let disk = SimDisk::new();
    disk.write(0, &[1; 1024]).unwrap();
    disk.sync().unwrap();
    disk.set_len(2048).unwrap();
    disk.write(512, &[2; 1024]).unwrap();
    let run = disk.recording();
    assert_eq!(
        run.describe(&"5:subset:2".parse().unwrap()),
        "at position 5 of 5, durable up to 3\n  3: length 2048: lost\n  4: write of 1024 bytes at 512: kept"
    );
    assert!(run.describe(&"5:torn:1".parse().unwrap()).contains(": torn ["));
}

#[test]
fn ignored_syncs_leave_everything_to_chance() {
    let disk = SimDisk::new();
    disk.set_len(3).unwrap();
    disk.sync().unwrap();
    disk.inject(Fault::SyncsIgnored);
    for at in 0..3 {
        disk.write(at, b"x").unwrap();
        disk.sync().unwrap();
    }
    let run = disk.recording();
    assert_eq!(run.images_at(run.end(), &Sampling::new(1)).count(), 8);
    assert_eq!(disk.fault_counts().syncs_ignored, 3);
}

#[test]
fn a_second_crash_is_of_what_the_first_one_left() {
    let disk = SimDisk::new();
    disk.write(0, b"a").unwrap();
    disk.sync().unwrap();
    disk.write(0, b"b").unwrap();
    let mut second = BTreeSet::new();
    let run = disk.recording();
    for crash in run.images_at(run.end(), &Sampling::new(1)) {
        let next = crash.image.disk();
        assert_eq!((next.position(), next.recording().initial().hash()), (0, crash.image.hash()));
        next.write(1, b"c").unwrap();
        let run = next.recording();
        second.extend(run.images_at(run.end(), &Sampling::new(1)).map(|crash| crash.image.to_bytes()));
    }
    let expected: BTreeSet<Vec<u8>> =
        [&b"a"[..], b"b", b"a\0", b"b\0", b"ac", b"bc"].map(<[u8]>::to_vec).into();
    assert_eq!(second, expected);
}
