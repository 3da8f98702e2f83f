//! Events as words, as the ring keeps them.

use super::ring::WORDS;
use super::{Event, Told};
use crate::addr::{DeviceAddr, DeviceId, DevicePage, PAGE_SIZE, Place};
use crate::failure::Failure;
use std::time::Duration;

impl Told {
    pub(super) fn pack(self) -> [u64; WORDS] {
        let [head, a, b] = self.event.pack();
        [self.at.as_nanos() as u64, head, a, b]
    }

    /// `None`: the words are no event's.
    pub(super) fn unpack([at, head, a, b]: [u64; WORDS]) -> Option<Self> {
        let at = Duration::from_nanos(at);
        let event = Event::unpack([head, a, b])?;
        Some(Self { at, event })
    }
}

impl Event {
    /// The event as words: in the lowest byte its kind, which is not 0, and beside it its device.
    fn pack(self) -> [u64; 3] {
        let head = |kind: u64, device: DeviceId| kind | u64::from(device.0) << 8;
        let none = DeviceId(0);
        match self {
            Self::Lost(events) => [1, events, 0],
            Self::Migrated {
                address,
                pages,
                left,
                from,
                to,
            } => [
                2 | pack_place(from) << 8 | pack_place(to) << 16,
                (address / PAGE_SIZE) as u64,
                (pages as u64) << 32 | left as u64 & 0xffff_ffff,
            ],
            Self::EvictionBegan { device, chunk } => [head(3, device), pack_chunk(chunk), 0],
            Self::EvictionEnded {
                device,
                chunk,
                left,
            } => [head(4, device), pack_chunk(chunk), left as u64],
            Self::DeviceAdded(device) => [head(5, device), 0, 0],
            Self::DeviceSuspended(device) => [head(6, device), 0, 0],
            Self::DeviceResumed(device) => [head(7, device), 0, 0],
            Self::DeviceRemoved(device) => [head(8, device), 0, 0],
            Self::DeviceFailed(device) => [head(9, device), 0, 0],
            Self::ChunkAdded { device, chunk } => [head(10, device), chunk.into(), 0],
            Self::ChunkRemoved { device, chunk } => [head(11, device), chunk.into(), 0],
            Self::PagePoisoned { address } => [12, address as u64, 0],
            Self::MemoryFailure { address, outcome } => {
                [head(13, none), address as u64, outcome as u64]
            }
            Self::DeviceMemoryFailure { at, outcome } => [
                head(14, DeviceId(at.device)),
                at.page.0.into(),
                outcome as u64,
            ],
            Self::ReclaimBegan => [15, 0, 0],
            Self::ReclaimEnded { pages } => [16, pages, 0],
            Self::ReclaimStuck => [17, 0, 0],
            Self::OutOfMemoryNear => [18, 0, 0],
            Self::Forked => [19, 0, 0],
            Self::ForkedHere => [20, 0, 0],
            Self::Mapped { address, len } => [21, address as u64, len as u64],
            Self::Unmapped { address, len } => [22, address as u64, len as u64],
        }
    }

    /// The event of these words, if they are one's.
    fn unpack([head, a, b]: [u64; 3]) -> Option<Self> {
        let device = DeviceId((head >> 8 & 0xff) as u8);
        let (address, len, chunk) = (a as usize, b as usize, a as u32);
        Some(match head & 0xff {
            1 => Self::Lost(a),
            2 => Self::Migrated {
                address: address * PAGE_SIZE,
                pages: (b >> 32) as usize,
                left: (b & 0xffff_ffff) as usize,
                from: unpack_place(head >> 8),
                to: unpack_place(head >> 16),
            },
            3 => Self::EvictionBegan {
                device,
                chunk: unpack_chunk(a),
            },
            4 => Self::EvictionEnded {
                device,
                chunk: unpack_chunk(a),
                left: len,
            },
            5 => Self::DeviceAdded(device),
            6 => Self::DeviceSuspended(device),
            7 => Self::DeviceResumed(device),
            8 => Self::DeviceRemoved(device),
            9 => Self::DeviceFailed(device),
            10 => Self::ChunkAdded { device, chunk },
            11 => Self::ChunkRemoved { device, chunk },
            12 => Self::PagePoisoned { address },
            13 => Self::MemoryFailure {
                address,
                outcome: unpack_failure(b),
            },
            14 => Self::DeviceMemoryFailure {
                at: DeviceAddr {
                    device: device.0,
                    page: DevicePage(chunk),
                },
                outcome: unpack_failure(b),
            },
            15 => Self::ReclaimBegan,
            16 => Self::ReclaimEnded { pages: a },
            17 => Self::ReclaimStuck,
            18 => Self::OutOfMemoryNear,
            19 => Self::Forked,
            20 => Self::ForkedHere,
            21 => Self::Mapped { address, len },
            22 => Self::Unmapped { address, len },
            _ => return None,
        })
    }
}

/// A chunk, or none: as one number.
fn pack_chunk(chunk: Option<u32>) -> u64 {
    chunk.map_or(0, |chunk| u64::from(chunk) + 1)
}

fn unpack_chunk(word: u64) -> Option<u32> {
    word.checked_sub(1).map(|chunk| chunk as u32)
}

fn pack_place(place: Place) -> u64 {
    match place {
        Place::Ram => 0,
        Place::Device(device) => u64::from(device.0) + 1,
    }
}

fn unpack_place(word: u64) -> Place {
    match (word & 0xff) as u8 {
        0 => Place::Ram,
        device => Place::Device(DeviceId(device - 1)),
    }
}

fn unpack_failure(word: u64) -> Failure {
    match word {
        0 => Failure::Recovered,
        1 => Failure::Poisoned,
        _ => Failure::Retired,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_as_it_was_told() {
        let device = DeviceId(7);
        let (address, len, chunk) = (0x7fff_ffff_f000, usize::MAX >> 8, u32::MAX - 1);
        let outcomes = [Failure::Recovered, Failure::Poisoned, Failure::Retired];
        let at = device.page((1 << 29) - 1);
        let places = [
            Place::Ram,
            Place::Device(DeviceId(0)),
            Place::Device(device),
        ];
        let mut events = vec![
            Event::Lost(u64::MAX),
            Event::DeviceAdded(device),
            Event::DeviceSuspended(device),
            Event::DeviceResumed(device),
            Event::DeviceRemoved(device),
            Event::DeviceFailed(device),
            Event::ChunkAdded { device, chunk },
            Event::ChunkRemoved { device, chunk },
            Event::PagePoisoned { address },
            Event::ReclaimBegan,
            Event::ReclaimEnded { pages: u64::MAX },
            Event::ReclaimStuck,
            Event::OutOfMemoryNear,
            Event::Forked,
            Event::ForkedHere,
            Event::Mapped { address, len },
            Event::Unmapped { address, len },
        ];
        for outcome in outcomes {
            events.push(Event::MemoryFailure { address, outcome });
            events.push(Event::DeviceMemoryFailure { at, outcome });
        }
        for chunk in [None, Some(0), Some(chunk)] {
            events.push(Event::EvictionBegan { device, chunk });
            events.extend([0, len].map(|left| Event::EvictionEnded {
                device,
                chunk,
                left,
            }));
        }
        for (from, to) in places
            .into_iter()
            .flat_map(|from| places.map(|to| (from, to)))
        {
            events.push(Event::Migrated {
                address,
                pages: u32::MAX as usize,
                left: 1,
                from,
                to,
            });
        }
        let mut kinds = std::collections::BTreeSet::new();
        for event in events {
            kinds.insert(event.pack()[0] & 0xff);
            let told = Told {
                at: Duration::from_nanos(u64::MAX),
                event,
            };
            assert_eq!(Told::unpack(told.pack()), Some(told));
            assert!(!event.to_string().is_empty());
        }
        // Every kind there is was among them.
        let known: std::collections::BTreeSet<u64> = (0..=255)
            .filter(|&kind| Event::unpack([kind, 0, 0]).is_some())
            .collect();
        assert_eq!(kinds, known);
    }
}
