//! What happens in a space, told to whoever listens: devices that come and go, migrations, pages that
//! are lost, reclaim that is stuck.
//!
//! Anybody may tell, fault handlers included, so telling allocates nothing, takes no lock, makes no
//! system call and waits for nobody (R18). It costs one load while nobody listens. Listeners look for
//! news by themselves; nobody wakes them.
//!
//! Each listener sees all events from its own beginning on, in order. What it has lost, because it
//! looked too seldom, is counted, and told as [`Event::Lost`]: an event is seen or counted, never
//! neither. How that is done without a lock: `ring.rs`.

mod event;
mod ring;
mod words;

pub use event::{Event, Told};

use crate::mmu::Mmu;
use crate::reclaim::{PATIENCE, Step};
use crate::space::Space;
use ring::{Read, Ring, SLOTS};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};
use std::time::{Duration, Instant};

/// The events of a space. See the module's head.
pub struct Events<T> {
    start: Instant,
    listeners: AtomicU32,
    ring: Ring<T>,
}

impl<T: Deref<Target = [AtomicU64]>> Events<T> {
    pub(crate) fn new(table: impl Fn(usize) -> Option<T>) -> Option<Self> {
        Some(Self {
            start: Instant::now(),
            listeners: AtomicU32::new(0),
            ring: Ring::new(table)?,
        })
    }

    /// Tells whoever listens.
    #[inline]
    pub fn tell(&self, event: Event) {
        if self.listeners.load(Relaxed) > 0 {
            self.write(event);
        }
    }

    #[cold]
    fn write(&self, event: Event) {
        let at = self.start.elapsed();
        self.ring.write(Told { at, event }.pack());
    }

    /// In the child of a fork, while it has but one thread.
    pub(crate) fn begin_in_child(&self) {
        self.ring.begin_in_child();
    }
}

/// Somebody who is told of all events from its beginning on.
pub struct Listener<T> {
    events: Arc<Events<T>>,
    position: u64,
    dropped: u64,
}

impl<T: Deref<Target = [AtomicU64]>> Listener<T> {
    /// Listens from now on.
    pub fn new(events: &Arc<Events<T>>) -> Self {
        events.listeners.fetch_add(1, Relaxed);
        Self {
            events: Arc::clone(events),
            position: events.ring.next(),
            dropped: events.ring.dropped(),
        }
    }

    /// The next event, if there is one now. Never waits.
    pub fn try_next(&mut self) -> Option<Told> {
        let ring = &self.events.ring;
        let dropped = ring.dropped();
        let mut lost = dropped - std::mem::replace(&mut self.dropped, dropped);
        let told = loop {
            let next = ring.next();
            let oldest = next.saturating_sub(SLOTS as u64).max(self.position);
            lost += oldest - std::mem::replace(&mut self.position, oldest);
            if self.position == next {
                break None;
            }
            let told = match ring.read(self.position) {
                Read::Event(words) => Told::unpack(words),
                Read::Lost => None,
                Read::NotYet => break None,
            };
            match told {
                None => lost += 1,
                // What was lost before it comes first.
                Some(_) if lost > 0 => break None,
                Some(_) => {}
            }
            self.position += 1;
            if told.is_some() {
                break told;
            }
        };
        if lost == 0 {
            return told;
        }
        let at = self.events.start.elapsed();
        let event = Event::Lost(lost);
        Some(Told { at, event })
    }
}

impl<T> Drop for Listener<T> {
    fn drop(&mut self) {
        self.events.listeners.fetch_sub(1, Relaxed);
    }
}

impl<M: Mmu> Space<M> {
    /// The events of the space, to tell and to listen to.
    pub fn events(&self) -> &Arc<Events<M::Table>> {
        &self.events
    }
}

/// What the reclaimer tells of itself, from step to step.
#[derive(Default)]
pub(crate) struct ReclaimNews {
    /// Pages that had gone to devices when it began.
    began: Option<u64>,
    stuck: bool,
    near: bool,
}

impl ReclaimNews {
    /// A step has come to `step`; threads have waited for RAM in vain for `in_vain`.
    pub(crate) fn step<M: Mmu>(&mut self, space: &Space<M>, step: Step, in_vain: Duration) {
        let gone = || space.stats().pages_to_device.get() + space.stats().clean_evictions.get();
        if step == Step::Idle {
            if let Some(began) = self.began.take() {
                let pages = gone().saturating_sub(began);
                space.events.tell(Event::ReclaimEnded { pages });
            }
        } else if self.began.is_none() {
            self.began = Some(gone());
            space.events.tell(Event::ReclaimBegan);
        }
        for (told, event, when) in [
            (&mut self.stuck, Event::ReclaimStuck, Duration::ZERO),
            (&mut self.near, Event::OutOfMemoryNear, PATIENCE / 2),
        ] {
            if in_vain > when && !std::mem::replace(told, true) {
                space.events.tell(event);
            }
            *told &= in_vain > Duration::ZERO;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    type Table = Vec<AtomicU64>;

    fn events() -> Arc<Events<Table>> {
        let table = |len| Some((0..len).map(|_| AtomicU64::new(0)).collect());
        Arc::new(Events::new(table).expect("a table"))
    }

    /// An event with a number, whose other word follows from it.
    fn numbered(number: usize) -> Event {
        let len = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Event::Mapped {
            address: number,
            len,
        }
    }

    /// The number of an event that is as it was told; `Err`: so many are lost.
    fn number(told: Told) -> Result<usize, u64> {
        match told.event {
            Event::Lost(events) => Err(events),
            Event::Mapped { address, .. } if told.event == numbered(address) => Ok(address),
            other => panic!("nobody has told {other:?}"),
        }
    }

    #[test]
    fn nothing_is_told_while_nobody_listens() {
        let events = events();
        events.tell(numbered(1));
        let mut listener = Listener::new(&events);
        assert_eq!(listener.try_next(), None);
        events.tell(numbered(2));
        assert_eq!(listener.try_next().map(number), Some(Ok(2)));
        drop(listener);
        events.tell(numbered(3));
        assert_eq!(events.ring.next(), 1);
    }

    #[test]
    fn every_listener_is_told_everything_from_its_beginning_on() {
        let events = events();
        let mut first = Listener::new(&events);
        events.tell(numbered(1));
        let mut second = Listener::new(&events);
        events.tell(numbered(2));
        let all = |listener: &mut Listener<Table>| {
            std::iter::from_fn(|| listener.try_next().map(number)).collect::<Vec<_>>()
        };
        assert_eq!(all(&mut first), [Ok(1), Ok(2)]);
        assert_eq!(all(&mut second), [Ok(2)]);
        let times = [first, second].map(|listener| listener.position);
        assert_eq!(times, [2, 2]);
    }

    #[test]
    fn who_looks_too_seldom_is_told_how_much_is_lost() {
        let events = events();
        let mut listener = Listener::new(&events);
        (0..SLOTS + 10).for_each(|i| events.tell(numbered(i)));
        assert_eq!(listener.try_next().map(number), Some(Err(10)));
        for i in 10..SLOTS + 10 {
            assert_eq!(listener.try_next().map(number), Some(Ok(i)));
        }
        assert_eq!(listener.try_next(), None);
    }

    /// Somebody has begun to tell, and sleeps: others go on for a lap, and drop what comes after.
    #[test]
    fn who_sleeps_in_the_middle_of_telling_holds_nobody_up() {
        let events = events();
        let mut listener = Listener::new(&events);
        let slow = events.ring.take_position().expect("a position");
        (1..SLOTS + 5).for_each(|i| events.tell(numbered(i)));
        // What has no slot is known at once; what stands behind the sleeper waits for it.
        assert_eq!(listener.try_next().map(number), Some(Err(5)));
        assert_eq!(listener.try_next(), None);
        let words = |event| {
            let at = Duration::ZERO;
            Told { at, event }.pack()
        };
        events.ring.complete(slow, words(numbered(77)));
        assert_eq!(listener.try_next().map(number), Some(Ok(77)));
        for i in 1..SLOTS {
            assert_eq!(listener.try_next().map(number), Some(Ok(i)));
        }
        assert_eq!(listener.try_next(), None);
        events.tell(numbered(8));
        assert_eq!(listener.try_next().map(number), Some(Ok(8)));
    }

    /// A reader that is overtaken in the middle of an event has not read one.
    #[test]
    fn what_is_overwritten_while_it_is_read_is_lost() {
        let events = events();
        let _listener = Listener::new(&events);
        (0..SLOTS).for_each(|i| events.tell(numbered(i)));
        assert!(matches!(
            events.ring.read_while(3, || events.tell(numbered(SLOTS))),
            Read::Event(_)
        ));
        let overtake = || (0..3).for_each(|i| events.tell(numbered(i)));
        assert!(matches!(events.ring.read_while(3, overtake), Read::Lost));
        // Its slot is being written to, by somebody who sleeps.
        let begin = || _ = events.ring.take_position().map(|p| events.ring.begin(p));
        assert!(matches!(events.ring.read_while(4, begin), Read::Lost));
    }

    /// In the child of a fork the sleeper is not there.
    #[test]
    fn what_nobody_is_left_to_complete_is_lost() {
        let events = events();
        let mut listener = Listener::new(&events);
        // Once round, so that slots hold old events.
        (0..SLOTS).for_each(|i| events.tell(numbered(i)));
        let mut late = Listener::new(&events);
        events.ring.take_position().expect("a position");
        events.tell(numbered(5));
        assert_eq!(late.try_next(), None);
        events.begin_in_child();
        let rest = |listener: &mut Listener<Table>| {
            std::iter::from_fn(|| listener.try_next().map(number)).collect::<Vec<_>>()
        };
        assert_eq!(rest(&mut late), [Err(1), Ok(5)]);
        let seen = rest(&mut listener);
        assert_eq!(seen[0], Err(2), "two were overwritten");
        assert_eq!(seen[seen.len() - 2..], [Err(1), Ok(5)]);
        events.tell(numbered(6));
        assert_eq!(rest(&mut late), [Ok(6)]);
    }

    /// An event is seen as it was told, or counted as lost: never neither, and in each teller's order.
    #[test]
    fn many_tellers_and_listeners() {
        const TELLERS: usize = 3;
        const EACH: usize = 60_000;
        let events = events();
        let listeners: Vec<_> = (0..2).map(|_| Listener::new(&events)).collect();
        let told = AtomicU32::new(0);
        thread::scope(|scope| {
            for teller in 0..TELLERS {
                let (events, told) = (&events, &told);
                scope.spawn(move || {
                    (0..EACH).for_each(|i| events.tell(numbered(teller << 32 | i)));
                    told.fetch_add(1, SeqCst);
                });
            }
            for (i, mut listener) in listeners.into_iter().enumerate() {
                let told = &told;
                scope.spawn(move || {
                    let (mut seen, mut lost, mut last) = (0, 0, [None; TELLERS]);
                    loop {
                        // Before the look: what is told after it is looked for again.
                        let over = told.load(SeqCst) as usize == TELLERS;
                        match listener.try_next().map(number) {
                            Some(Ok(number)) => {
                                let (teller, i) = (number >> 32, number & 0xffff_ffff);
                                assert!(last[teller] < Some(i), "out of order");
                                last[teller] = Some(i);
                                seen += 1;
                            }
                            Some(Err(events)) => lost += events as usize,
                            None if over => break,
                            None if i == 0 => thread::yield_now(),
                            None => thread::sleep(Duration::from_millis(1)),
                        }
                    }
                    assert!(seen >= SLOTS);
                    assert_eq!(seen + lost, TELLERS * EACH);
                });
            }
        });
    }
}
