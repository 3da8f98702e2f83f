//! Events, of what really happens.

use crate::device::{DEAD, FULL, WORKS, moody};
use crate::{FIRST, MIB, PAGE, RAM, SECOND, SOON, at_rest, space};
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};
use uhmm::devices::MirrorDevice;
use uhmm::events::{Event, Events, Failure};
use uhmm::{Builder, DeviceId, Place};

/// All that has been told so far. Another test forks, and all spaces of the process are told.
fn told(events: &mut Events) -> Vec<Event> {
    let all = std::iter::from_fn(|| events.try_next().map(|told| told.event));
    all.filter(|event| *event != Event::Forked).collect()
}

/// Waits for an event that `is` the one.
fn wait_for(events: &mut Events, what: &str, is: impl Fn(&Event) -> bool) -> Event {
    let start = Instant::now();
    while start.elapsed() < SOON {
        if let Some(told) = events.next_timeout(SOON)
            && is(&told.event)
        {
            return told.event;
        }
    }
    panic!("nobody has told that {what}");
}

#[test]
fn the_life_of_a_device_is_told() {
    let space = space();
    let mut events = space.events();
    let third = space
        .add_device(Box::new(MirrorDevice::new(8 << 20)))
        .unwrap();
    assert_eq!(third, DeviceId(2));
    let chunk = |device, chunk| Event::ChunkAdded { device, chunk };
    assert_eq!(
        told(&mut events),
        [chunk(third, 0), Event::DeviceAdded(third)]
    );
    let empties = |device, left| {
        let chunk = None;
        let began = Event::EvictionBegan { device, chunk };
        [
            began,
            Event::EvictionEnded {
                device,
                chunk,
                left,
            },
        ]
    };
    space.suspend_device(FIRST, SOON).unwrap();
    let [began, ended] = empties(FIRST, 0);
    assert_eq!(
        told(&mut events),
        [Event::DeviceSuspended(FIRST), began, ended]
    );
    // Once more: it was suspended before, and is emptied again.
    space.suspend_device(FIRST, SOON).unwrap();
    assert_eq!(told(&mut events), [began, ended]);
    assert!(space.resume_device(FIRST) && !space.resume_device(FIRST));
    assert_eq!(told(&mut events), [Event::DeviceResumed(FIRST)]);
    space.remove_device(SECOND, SOON).unwrap();
    let [began, ended] = empties(SECOND, 0);
    let gone = Event::ChunkRemoved {
        device: SECOND,
        chunk: 0,
    };
    assert_eq!(
        told(&mut events),
        [began, gone, ended, Event::DeviceRemoved(SECOND)]
    );
    // One that is not done in time.
    let held = space.alloc_device_pages(third, 0).unwrap();
    space
        .evict_chunk(third, 0, Duration::ZERO)
        .expect_err("a page is held");
    let chunk = Some(0);
    let ended = Event::EvictionEnded {
        device: third,
        chunk,
        left: 1,
    };
    let began = Event::EvictionBegan {
        device: third,
        chunk,
    };
    assert_eq!(told(&mut events), [began, ended]);
    drop(held);
}

#[test]
fn regions_and_migrations_are_told_and_times_go_up() {
    let space = space();
    let mut events = space.events();
    let mut region = space.region(2 * MIB + PAGE).unwrap();
    let (address, len) = (region.as_ptr() as usize, region.len());
    region.as_mut_slice().fill(1);
    at_rest(&region);
    region.migrate(Place::Device(SECOND)).unwrap();
    let part = region.range(..PAGE).unwrap();
    part.migrate(Place::Ram).unwrap();
    part.migrate(Place::Device(FIRST)).unwrap();
    part.migrate(Place::Device(SECOND)).unwrap();
    drop(region);
    let [first, second] = [FIRST, SECOND].map(Place::Device);
    let migrated = |address, pages, from, to| Event::Migrated {
        address,
        pages,
        left: 0,
        from,
        to,
    };
    let mut all: Vec<_> = std::iter::from_fn(|| events.try_next()).collect();
    all.retain(|told| told.event != Event::Forked);
    assert!(
        all.windows(2).all(|pair| pair[0].at <= pair[1].at),
        "{all:?}"
    );
    assert!(all[0].at > Duration::ZERO && all.last().unwrap().at < SOON);
    let found: Vec<_> = all.iter().map(|told| told.event).collect();
    assert_eq!(
        found,
        [
            Event::Mapped { address, len },
            // Large ranges go 2 MiB at a time.
            migrated(address, 512, Place::Ram, second),
            migrated(address + 2 * MIB, 1, Place::Ram, second),
            migrated(address, 1, second, Place::Ram),
            migrated(address, 1, Place::Ram, first),
            migrated(address, 1, first, second),
            Event::Unmapped { address, len },
        ]
    );
    let line = all[1].to_string();
    assert!(
        line.contains(" s: 512 pages from 0x") && line.contains("RAM to device 1"),
        "{line}"
    );
}

#[test]
fn a_lost_page_is_told() {
    let space = space();
    let mut region = space.region(4 * PAGE).unwrap();
    region.as_mut_slice().fill(1);
    let mut events = space.events();
    let address = region.as_ptr() as usize + PAGE;
    space.memory_failure(address).unwrap();
    let outcome = Failure::Poisoned;
    assert_eq!(
        told(&mut events),
        [
            Event::PagePoisoned { address },
            Event::MemoryFailure { address, outcome }
        ]
    );
    let at = FIRST.page(9);
    space.device_memory_failure(at).unwrap();
    let outcome = Failure::Retired;
    assert_eq!(
        told(&mut events),
        [Event::DeviceMemoryFailure { at, outcome }]
    );
    assert_eq!(space.statistics().poisoned_pages, 1);
}

#[test]
fn a_device_that_fails_is_told_once() {
    let (device, mood) = moody(WORKS);
    let space = Builder::new(RAM as u64).device(device).build().unwrap();
    let mut region = space.region(16 * PAGE).unwrap();
    region.as_mut_slice().fill(5);
    at_rest(&region);
    mood.store(DEAD, SeqCst);
    let mut events = space.events();
    for _ in 0..3 {
        _ = region.migrate(Place::Device(FIRST));
    }
    let failures = told(&mut events);
    let failed = |event: &&Event| **event == Event::DeviceFailed(FIRST);
    assert_eq!(failures.iter().filter(failed).count(), 1, "{failures:?}");
    assert!(region.as_slice().iter().all(|&byte| byte == 5));
}

/// From the beginning of reclaim to the brink of running out of memory, and back.
#[test]
fn pressure_is_told() {
    let (device, mood) = moody(FULL);
    let space = Builder::new(RAM as u64).device(device).build().unwrap();
    let mut events = space.events();
    let mut region = space.region(2 * RAM).unwrap();
    thread::scope(|scope| {
        let memory = region.as_mut_slice();
        scope.spawn(move || memory.fill(7));
        wait_for(&mut events, "reclaim begins", |e| *e == Event::ReclaimBegan);
        wait_for(&mut events, "it is stuck", |e| *e == Event::ReclaimStuck);
        wait_for(&mut events, "the end is near", |e| {
            *e == Event::OutOfMemoryNear
        });
        mood.store(WORKS, SeqCst);
    });
    let ended = wait_for(&mut events, "reclaim ends", |event| {
        matches!(event, Event::ReclaimEnded { .. })
    });
    assert!(
        matches!(ended, Event::ReclaimEnded { pages } if pages > 0),
        "{ended:?}"
    );
    assert!(region.as_slice().iter().all(|&byte| byte == 7));
}

/// Both sides of a fork are told that it was, and each listener goes on on its side.
#[test]
fn a_fork_is_told_on_both_sides() {
    let space = space();
    let mut region = space.region(4 * PAGE).unwrap();
    region.as_mut_slice().fill(1);
    let mut events = space.events();
    // SAFETY: the child calls what is safe after a fork of a process with threads: it reads managed
    // memory, and allocates nothing.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let told = events.try_next().map(|told| told.event);
        let right = told == Some(Event::ForkedHere) && region.as_slice()[PAGE] == 1;
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(i32::from(!right)) };
    }
    let mut status = 0;
    // SAFETY: our child, and a place for its status.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0, "the child was told something else");
    let told = events.try_next().map(|told| told.event);
    assert_eq!((told, events.try_next()), (Some(Event::Forked), None));
}

/// More than is kept is counted: each event is told, or lost.
#[test]
fn what_is_told_too_fast_is_counted() {
    let space = space();
    let mut events = space.events();
    let rounds = 1000;
    for _ in 0..rounds {
        drop(space.region(PAGE).unwrap());
    }
    let all: Vec<_> = std::iter::from_fn(|| events.try_next().map(|told| told.event)).collect();
    let forks = all.iter().filter(|event| **event == Event::Forked).count() as u64;
    assert_eq!(all.len(), 1 + 1024, "no more is kept");
    // A fork may be among those that are lost.
    let lost = 2 * rounds - (1024 - forks);
    assert!(
        all[0] == Event::Lost(lost) || all[0] == Event::Lost(lost + 1),
        "{:?}",
        all[0]
    );
}

/// Who listens does not keep the space, and is told all until its end.
#[test]
fn the_stream_ends_with_the_space() {
    let space = space();
    let mut events = space.events();
    assert_eq!(events.next_timeout(Duration::from_millis(5)), None);
    let listener = thread::spawn(move || events.map(|told| told.event).collect::<Vec<_>>());
    let region = space.region(PAGE).unwrap();
    let (address, len) = (region.as_ptr() as usize, region.len());
    drop(space);
    drop(region);
    let mut all = listener.join().unwrap();
    all.retain(|event| *event != Event::Forked);
    let expected = [
        Event::Mapped { address, len },
        Event::Unmapped { address, len },
    ];
    assert_eq!(all, expected);
}
