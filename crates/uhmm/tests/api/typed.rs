//! Regions and slices of plain old data, parts of them, and statistics.

use crate::{FIRST, MIB, PAGE, RAM, SECOND, SOON, at_rest, space, wait_until};
use std::io::ErrorKind;
use std::thread;
use uhmm::device::Standing;
use uhmm::typed::bytemuck;
use uhmm::{BoundsError, Builder, MigrateError, Place, RangeError, RegionError};

/// 12 bytes, so that elements lie across pages.
#[derive(Clone, Copy, PartialEq, Debug)]
#[repr(C)]
struct Point {
    x: f32,
    y: i32,
    label: u32,
}

// SAFETY: three words without padding, of types that are so.
unsafe impl bytemuck::Zeroable for Point {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Point {}

fn point(i: usize) -> Point {
    Point {
        x: i as f32,
        y: -(i as i32),
        label: (i as u32).wrapping_mul(0x9e37_79b9),
    }
}

#[test]
fn a_slice_larger_than_its_ram_holds_what_it_was_given() {
    let space = space();
    let len = 4 * RAM / size_of::<Point>();
    let mut points = space.slice::<Point>(len).unwrap();
    assert_eq!(points.len(), len);
    assert!(points.iter().all(|point| *point
        == Point {
            x: 0.0,
            y: 0,
            label: 0
        }));
    for (i, place) in points.iter_mut().enumerate() {
        *place = point(i);
    }
    let statistics = space.statistics();
    assert!(statistics.ram_bytes <= RAM as u64, "{statistics}");
    assert!(
        statistics.pages_to_device as usize > 2 * RAM / PAGE,
        "{statistics}"
    );
    // By parts, on several threads.
    thread::scope(|scope| {
        for (part, points) in points.chunks_mut(len / 2).enumerate() {
            scope.spawn(move || {
                for (i, place) in points.iter_mut().enumerate() {
                    assert_eq!(*place, point(part * (len / 2) + i));
                    place.label ^= 1;
                }
            });
        }
    });
    let good = |(i, place): (usize, &Point)| place.label == point(i).label ^ 1;
    assert!(points.iter().enumerate().all(good));
    points.clear().unwrap();
    assert!(points.iter().all(|point| point.label == 0));
}

#[test]
fn a_region_is_bytes_and_words() {
    let space = space();
    let mut region = space.region(3 * PAGE + 1).unwrap();
    assert_eq!(region.len(), 4 * PAGE);
    region.as_mut_slice_of::<u64>()[5] = 0x0102_0304_0506_0708;
    assert_eq!(region.as_slice()[40], 8);
    assert_eq!(region.as_slice_of::<u64>().len(), 4 * PAGE / 8);
    assert_eq!(region.as_slice_of::<[u8; 3]>()[13][1], 8);
    // As many as fit.
    assert_eq!(region.as_slice_of::<Point>().len(), 4 * PAGE / 12);
    assert_eq!(region.as_slice_of::<[u8; 8 * PAGE]>().len(), 0);
}

#[test]
fn every_bad_size_has_an_error_of_its_own() {
    let space = space();
    let refused = |error: std::io::Error| {
        let kind = error.kind();
        let why = error
            .get_ref()
            .and_then(|why| why.downcast_ref::<RegionError>());
        (kind, *why.expect("a reason"))
    };
    let region = |len| refused(space.region(len).unwrap_err());
    let slice = |len| refused(space.slice::<Point>(len).unwrap_err());
    assert_eq!(region(0), (ErrorKind::InvalidInput, RegionError::Empty));
    assert_eq!(slice(0), (ErrorKind::InvalidInput, RegionError::Empty));
    let too_large = (ErrorKind::OutOfMemory, RegionError::TooLarge);
    assert_eq!(region(usize::MAX), too_large);
    assert_eq!(slice(usize::MAX / 2), too_large);
    let bytes = 1 << 60;
    let no_room = (ErrorKind::OutOfMemory, RegionError::NoRoom { bytes });
    assert_eq!(region(bytes), no_room);
    // Nothing was taken by what was refused.
    assert_eq!(space.slice::<u8>(1).unwrap().len(), 1);
}

#[test]
fn a_part_goes_where_it_is_sent() {
    let space = space();
    let pages = 100;
    let mut words = space.slice::<u64>(pages * PAGE / 8).unwrap();
    (0..words.len()).for_each(|i| words[i] = i as u64);
    at_rest(words.region());
    // Of the tenth page the last word, all of the next nine, and the first word of the one after that.
    let part = words.range(10 * 512 - 1..=19 * 512).unwrap();
    assert_eq!(
        (part.len(), part.address() % PAGE),
        (9 * PAGE + 16, PAGE - 8)
    );
    let whole = part.pages();
    assert_eq!((whole.len(), whole.address() % PAGE), (11 * PAGE, 0));
    assert_eq!(part.migrate(Place::Device(SECOND)).unwrap().migrated, 11);
    assert_eq!(part.usage().unwrap().devices[1], 11);
    let usage = words.region().usage().unwrap();
    assert_eq!((usage.ram, usage.devices[1]), (pages - 11, 11));
    // A name borrows nothing: the program goes on writing.
    words[15 * 512] = 7;
    at_rest(words.region());
    assert!(part.usage().unwrap().devices[1] <= 10);
    part.read_mostly(true).unwrap();
    assert!((0..words.len()).all(|i| i == 15 * 512 || words[i] == i as u64));
    drop(words);
    // And it may outlive the region, whose memory is gone.
    assert_eq!(part.usage(), Err(RangeError::Hole));
    let gone = MigrateError::Range(RangeError::Hole);
    assert_eq!(part.migrate(Place::Ram), Err(gone));
    assert_eq!(
        part.read_mostly(true).unwrap_err().kind(),
        ErrorKind::OutOfMemory
    );
}

#[test]
fn what_is_no_part_has_no_name() {
    let space = space();
    let region = space.region(PAGE).unwrap();
    let slice = space.slice::<u32>(10).unwrap();
    assert_eq!(region.range(..).unwrap().len(), PAGE);
    assert_eq!(slice.range(3..).unwrap().len(), 28);
    // The bytes behind the last element are the slice's, and no part of it.
    let past = BoundsError::PastEnd { end: 11, len: 10 };
    assert_eq!(slice.range(..11).unwrap_err(), past);
    let past = BoundsError::PastEnd {
        end: PAGE + 1,
        len: PAGE,
    };
    assert_eq!(region.range(..=PAGE).unwrap_err(), past);
    assert_eq!(region.range(7..7).unwrap_err(), BoundsError::Empty);
    let (start, end) = (7, 3);
    let reversed = BoundsError::Reversed { start, end };
    assert_eq!(slice.range(start..end).unwrap_err(), reversed);
}

#[test]
fn statistics_say_how_the_space_fares() {
    let space = space();
    let before = space.statistics();
    assert_eq!((before.faults(), before.ram_bytes), (0, 0));
    assert_eq!(before.ram_budget_bytes, RAM as u64);
    let kinds: Vec<_> = before.devices.iter().map(|device| device.kind).collect();
    assert_eq!(kinds, ["mirror", "lz4"]);
    let mut region = space.region(MIB).unwrap();
    region.as_mut_slice().fill(3);
    at_rest(&region);
    region.migrate(Place::Device(FIRST)).unwrap();
    let sent = space.statistics();
    assert!(
        sent.first_touch_faults > 0 && sent.first_touch_faults <= 256,
        "{sent:?}"
    );
    assert_eq!((sent.pages_to_device, sent.devices[0].pages), (256, 256));
    assert_eq!(sent.devices[0].stored_bytes, MIB as u64);
    assert!(region.as_slice().iter().all(|&byte| byte == 3));
    // Handlers count once the page is there.
    wait_until("all faults are counted", || {
        space.statistics().pages_to_system == 256
    });
    let back = space.statistics();
    assert!(back.device_faults > 0, "{back:?}");
    assert_eq!(
        (back.devices[0].pages_peak, back.ram_bytes),
        (256, MIB as u64)
    );
    space.suspend_device(FIRST, SOON).unwrap();
    space.remove_device(SECOND, SOON).unwrap();
    let after = space.statistics();
    let standing: Vec<_> = after.devices.iter().map(|device| device.standing).collect();
    assert_eq!(standing, [Standing::Suspended, Standing::Removed]);
    let text = after.to_string();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    assert!(lines[0].starts_with("RAM: 1.0 MiB of 4.0 MiB"), "{text}");
    assert!(
        lines[2].contains("256 to devices") && lines[2].contains("0 lost"),
        "{text}"
    );
    assert!(lines[3].starts_with("device 0 (mirror): ") && lines[3].ends_with("; suspended"));
    assert!(lines[4].ends_with("; removed"), "{text}");
}

/// A space without devices says so by having none.
#[test]
fn a_space_of_ram_alone() {
    let space = Builder::new(RAM as u64).build().unwrap();
    let mut words = space.slice::<u16>(1000).unwrap();
    words.fill(9);
    let statistics = space.statistics();
    assert!(statistics.devices.is_empty());
    assert_eq!(statistics.to_string().lines().count(), 3);
}
