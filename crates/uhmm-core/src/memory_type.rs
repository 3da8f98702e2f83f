//! The types of device memory, and what holds for each.
//!
//! | | Private | Coherent | Generic | FsDax | PeerToPeer |
//! | --- | --- | --- | --- | --- | --- |
//! | Linux | `MEMORY_DEVICE_PRIVATE` | `_COHERENT` | `_GENERIC` | `_FS_DAX` | `_PCI_P2PDMA` |
//! | the CPU maps it | never | yes | yes | yes | yes |
//! | it comes to a program by | migration | migration | [`map`] | [`map`] | [`map`] |
//! | migrates, and can be evicted | yes | yes | no | no | no |
//! | is held where it is | by its device | by anybody | by anybody | by anybody | by a peer that asks |
//! | is held long-term | after migrating | after migrating | where it is | never | never |
//! | once its last reference goes | free | free | free | idle: still the file's | free |
//! | what the next owner sees | nothing of it | nothing of it | nothing of it | the file | nothing of it |
//! | the chunk can end when | evicted | evicted | unmapped | unmapped | unmapped |
//!
//! Long-term holds are refused where the owner must be able to take the page back at any time: a
//! file that is truncated, a card that is unplugged.
//!
//! [`map`]: crate::Space::map_device_pages

/// A type of device memory; see the module's head for what holds for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemoryType {
    /// The CPU cannot map it: a GPU's memory, a compressed store, a file.
    Private,
    /// The CPU maps it like RAM: CXL memory, HBM. Only its driver puts pages there (R13).
    Coherent,
    /// A device's memory that a program maps as it is, and that never moves (a device-dax file).
    Generic,
    /// Pages of a file in memory that the CPU maps: they keep their bytes when nobody maps them.
    FsDax,
    /// A window on a device's memory that other devices may reach.
    PeerToPeer,
}

/// Whether a page may be held where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// By whoever wants to.
    Anybody,
    /// By the page's own device, and by a migration.
    ItsDevice,
    /// By who asks for pages of peers.
    Peers,
    /// The page leaves the device first.
    AfterMigrating,
    /// Not at all.
    Nobody,
}

impl MemoryType {
    /// Whether the CPU maps pages of this type.
    pub const fn is_mapped(self) -> bool {
        !matches!(self, Self::Private)
    }

    /// Whether pages come and go by migration, and can be evicted.
    pub const fn migrates(self) -> bool {
        matches!(self, Self::Private | Self::Coherent)
    }

    /// Who may hold a page of this type, for as long as an operation takes or (`longterm`) for as
    /// long as they like.
    pub const fn holding(self, longterm: bool) -> Holding {
        match (self, longterm) {
            (Self::Private, false) => Holding::ItsDevice,
            (Self::Private | Self::Coherent, true) => Holding::AfterMigrating,
            (Self::Coherent, false) | (Self::Generic, _) | (Self::FsDax, false) => Holding::Anybody,
            (Self::PeerToPeer, false) => Holding::Peers,
            (Self::FsDax | Self::PeerToPeer, true) => Holding::Nobody,
        }
    }

    /// Whether a page keeps its bytes for its next owner: a file's page does.
    pub const fn keeps_bytes(self) -> bool {
        matches!(self, Self::FsDax)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use MemoryType::*;

    #[test]
    fn what_migrates_is_never_held_long_on_its_device() {
        for memory in [Private, Coherent, Generic, FsDax, PeerToPeer] {
            let longterm = memory.holding(true);
            assert_eq!(memory.migrates(), longterm == Holding::AfterMigrating);
            assert_eq!(memory.is_mapped(), memory != Private);
        }
    }
}
