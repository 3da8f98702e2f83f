//! dmirror: a device in software with the interface of the kernel's HMM test driver, and the reference
//! for who writes a driver. It uses nothing but the public library.
//!
//! A program opens one of four devices, and commands it by `ioctl`: read or write this range of my memory,
//! migrate it to you, tell me what you see of it. The device does so through a page table of its own over
//! the whole process, as hardware would.
//!
//! | file | what it is | what a driver author finds there |
//! | --- | --- | --- |
//! | `command.rs` | the commands as bytes | |
//! | `device.rs` | the device: its memory, in chunks | the `Device` trait |
//! | `driver.rs` | four devices of a space; opening them | adding devices, `Space::mirror` |
//! | `file.rs` | an open file: each command in a few lines | what a file is in a child; the end |
//! | `access.rs` | the device reads and writes memory | a page table, `range_fault`, exclusive access |
//! | `snapshot.rs` | what the device sees | |
//! | `migrate.rs` | pages come and go; chunks do | a migration through its phases |
//! | `gup.rs` | pins, as the kernel's `gup_test` takes them | `pin_pages`, `get_pages` |
//! | `process.rs` | memory by address, and all `unsafe` | what a device that asks nobody promises |
//!
//! ```no_run
//! use uhmm::Builder;
//! use uhmm_dmirror::{Driver, Op, Process, Sizes};
//!
//! let space = Builder::new(1 << 30).build()?;
//! // SAFETY: the commands below name memory that is this program's to give.
//! let driver = Driver::new(unsafe { Process::new(&space) }, Sizes::default())?;
//! let file = driver.open(0)?;
//! let (region, mut copy) = (space.region(4096)?, vec![0_u8; 4096]);
//! let mut command = [0; 40];
//! command[..8].copy_from_slice(&(region.as_ptr() as u64).to_ne_bytes());
//! command[8..16].copy_from_slice(&(copy.as_mut_ptr() as u64).to_ne_bytes());
//! command[16..24].copy_from_slice(&1_u64.to_ne_bytes());
//! file.ioctl(Op::MigrateToDevice.request(), &mut command)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![deny(unsafe_code)]

mod access;
pub mod command;
pub mod device;
mod driver;
mod errno;
mod file;
pub mod gup;
mod migrate;
#[allow(unsafe_code)]
mod process;
pub mod snapshot;

pub use command::{Command, Op, Reply};
pub use driver::{Driver, Sizes, UNITS};
pub use errno::Errno;
pub use file::File;
pub use gup::Gup;
pub use process::Process;
