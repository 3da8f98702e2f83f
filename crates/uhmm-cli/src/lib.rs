//! The preload library that `uhmm run` and `uhmm dmirror` inject: manages the memory of an unmodified
//! program, or gives it devices.
//!
//! It interposes the C library's memory calls. `malloc` and its family are mimalloc, whose memory
//! comes from `mmap` like everybody's; private anonymous mappings go to the space. What the library
//! itself needs (and the C library, for our threads) comes from an allocator of its own, whose
//! memory is never managed (R18).
//!
//! | mode | when | `malloc` | `mmap` |
//! | --- | --- | --- | --- |
//! | starting | before [`preload::start`] has run | internal | the kernel's |
//! | plain | asked for nothing, or unable to | mimalloc | the kernel's |
//! | managed | from then on | mimalloc; for our threads internal | the space's |
//! | devices | from then on: see [`preload::dmirror`] | as managed | the kernel's |

mod preload {
    pub mod allocator;
    pub mod calls;
    pub mod descriptors;
    pub mod dmirror;
    pub mod internal;
    pub mod mapping;
    pub mod next;
    pub mod start;
}
