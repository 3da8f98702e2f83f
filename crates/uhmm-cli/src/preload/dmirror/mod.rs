//! `uhmm dmirror`: the program finds the devices of the kernel's HMM test driver.
//!
//! Nothing is different until it opens one. Then this process gets a space, whose reservation nobody uses:
//! what the program maps stays the kernel's, and the devices' mirrors are over all of it. Memory that is
//! told to migrate is managed from then on, at its own address.
//!
//! | what the program does | where | what is done |
//! | --- | --- | --- |
//! | opens a device | [`names`], [`files`] | the first time, the space is built; a descriptor of a file in memory |
//! | `ioctl`, `mmap` of a descriptor | [`calls`] | the driver's command; pages of that file |
//! | changes mappings | [`mappings`] | the kernel's call, with mirrors told before, and what is managed kept right |
//! | `close` and the like | [`files`] | after the last reference, the file ends and its device is emptied |
//!
//! A process that has opened none has no space and no threads of ours, so that to fork it costs nothing.
//! The child of one that has is as the child of any program with a space; it opens files of its own.

pub mod calls;
pub mod files;
pub mod mappings;
mod names;
mod statics;

use super::start::{self, space};
use libc::{c_int, pid_t};
use std::io;
use std::sync::OnceLock;
use uhmm::{Builder, Space};
use uhmm_core::lock::Lock;
use uhmm_dmirror::{Driver, Process, Sizes};
use uhmm_linux::probe::facts::machine_memory;
use uhmm_linux::signals::Blocked;

static SIZES: OnceLock<Sizes> = OnceLock::new();

static DRIVER: OnceLock<Driver<'static>> = OnceLock::new();

/// Held while the space is built, and during a fork: a child with half a space could not go on. It is
/// taken before every lock of the space.
static BUILDING: Lock<()> = Lock::new(());

/// Reads what `uhmm dmirror` asks for: bytes of each private, and of each coherent device.
pub fn prepare(sizes: &str) -> Result<(), Box<dyn std::error::Error>> {
    let (private, coherent) = sizes.split_once(',').ok_or("UHMM_DMIRROR: two sizes")?;
    let (private, coherent) = (private.parse()?, coherent.parse()?);
    let _ = SIZES.set(Sizes { private, coherent });
    files::hold_during_forks();
    calls::find_next();
    statics::keep();
    Ok(())
}

/// The devices. The first call builds the space.
fn driver() -> io::Result<&'static Driver<'static>> {
    if let Some(driver) = DRIVER.get() {
        return Ok(driver);
    }
    // A handler that opens a device, or forks, would wait for its own thread.
    let _signals = Blocked::but_sigbus();
    let _building = BUILDING.lock();
    if let Some(driver) = DRIVER.get() {
        return Ok(driver);
    }
    match build() {
        Ok(driver) => Ok(DRIVER.get_or_init(|| driver)),
        Err(error) => {
            let line = format!("uhmm: the devices cannot be opened: {error}\n");
            let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
            Err(io::Error::from_raw_os_error(libc::ENODEV))
        }
    }
}

fn build() -> Result<Driver<'static>, Box<dyn std::error::Error>> {
    let sizes = SIZES.get().copied().unwrap_or_default();
    let space = match space() {
        Some(space) => space,
        None => start::keep(Builder::new(machine_memory()).build()?),
    };
    // SAFETY: the program that sends a command says that the memory it names may be read, written or
    // migrated, as it says to the kernel's driver; what is ours cannot be migrated.
    let process = unsafe { Process::new(space) };
    Ok(Driver::new(process, sizes)?)
}

/// The space, if the calling thread's calls concern it: once a device has been opened.
fn listening() -> Option<&'static Space> {
    DRIVER.get()?;
    start::has_devices().then(space).flatten()
}

/// POSIX `fork`. See [`BUILDING`].
#[unsafe(no_mangle)]
pub extern "C" fn fork() -> pid_t {
    calls::next_fork(|fork| {
        if !start::has_devices() {
            return fork();
        }
        let _signals = Blocked::but_sigbus();
        let _built = BUILDING.lock();
        fork()
    })
}

/// An error of a call in the C library's form.
fn error(errno: c_int) -> io::Error {
    io::Error::from_raw_os_error(errno)
}
