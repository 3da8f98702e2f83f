//! Asking the machine. Nothing is changed by it, and nothing is concluded here.

use crate::abi::pagemap;
use linux_raw_sys::general::{
    _UFFDIO_API, UFFD_API, UFFD_USER_MODE_ONLY, USERFAULTFD_IOC, uffdio_api,
};
use rustix::fd::{AsFd, FromRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Updater, ioctl, opcode};
use rustix::mm::UserfaultfdFlags;
use rustix::process::{Resource, getrlimit};
use std::ffi::c_void;
use uhmm_core::addr::PageNo;

/// What was found. Each attempt is recorded as it came out.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The kernel's release, as `uname -r` prints it.
    pub release: String,
    /// Opening a userfaultfd that sees the faults of the kernel too.
    pub userfaultfd: Result<(), Errno>,
    /// Opening one that sees only those of user mode.
    pub user_mode_only: Result<(), Errno>,
    /// Opening one through `/dev/userfaultfd`.
    pub device_node: Result<(), Errno>,
    /// The feature bits (`UFFD_FEATURE_*`); `None` if none could be opened.
    pub features: Option<u64>,
    /// A `PAGEMAP_SCAN` of one page.
    pub pagemap_scan: Result<(), Errno>,
    /// Whether a seccomp filter is on this process.
    pub seccomp: bool,
    /// Whether this process has CAP_SYS_PTRACE, in whatever user namespace it is.
    pub ptrace_capability: bool,
    /// The setting of transparent huge pages, such as `madvise`.
    pub huge_pages: Option<String>,
    /// `vm.max_map_count`: how many mappings a process may have.
    pub max_map_count: Option<u64>,
    /// `vm.overcommit_memory`: 0, 1 or 2.
    pub overcommit: Option<u64>,
    /// The limit on the address space (`RLIMIT_AS`) in bytes, if there is one.
    pub address_space_limit: Option<u64>,
}

/// Finds out about this machine, this user and this process.
pub fn gather() -> Facts {
    let full = open_userfaultfd(0);
    let user_mode_only = open_userfaultfd(UFFD_USER_MODE_ONLY);
    let device_node = open_device_node();
    let any = [&full, &device_node, &user_mode_only]
        .into_iter()
        .find_map(|fd| fd.as_ref().ok());
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    Facts {
        release: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        features: any.and_then(|fd| features(fd).ok()),
        userfaultfd: full.map(drop),
        user_mode_only: user_mode_only.map(drop),
        device_node: device_node.map(drop),
        pagemap_scan: scan_own_stack(),
        seccomp: status_field(&status, "Seccomp:").is_some_and(|mode| mode != "0"),
        ptrace_capability: status_field(&status, "CapEff:")
            .and_then(|bits| u64::from_str_radix(bits, 16).ok())
            .is_some_and(|bits| bits & 1 << CAP_SYS_PTRACE != 0),
        huge_pages: std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
            .ok()
            .and_then(|text| Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())),
        max_map_count: number("/proc/sys/vm/max_map_count"),
        overcommit: number("/proc/sys/vm/overcommit_memory"),
        address_space_limit: getrlimit(Resource::As).current,
    }
}

/// The machine's RAM in bytes.
pub fn machine_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram as u64 * u64::from(info.mem_unit)
}

/// The capability's number in `linux/capability.h`.
const CAP_SYS_PTRACE: u32 = 19;

fn status_field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .map(str::trim)
}

fn number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn open_userfaultfd(flags: u32) -> Result<OwnedFd, Errno> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::from_bits_retain(flags);
    // SAFETY: it is never registered on memory, so it has power over none.
    unsafe { rustix::mm::userfaultfd(flags) }
}

/// `USERFAULTFD_IOC_NEW`: opens a userfaultfd through the device node.
struct New;

// SAFETY: the call takes its flags in the place of a pointer, touches no memory, and returns a
// new file descriptor.
unsafe impl Ioctl for New {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::none(USERFAULTFD_IOC as u8, 0)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::without_provenance_mut(OFlags::CLOEXEC.bits() as usize)
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> rustix::io::Result<OwnedFd> {
        // SAFETY: what the call returns when it succeeds is a descriptor that nobody else has.
        Ok(unsafe { OwnedFd::from_raw_fd(output) })
    }
}

fn open_device_node() -> Result<OwnedFd, Errno> {
    let node = rustix::fs::open(
        c"/dev/userfaultfd",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // SAFETY: the request is implemented as its driver defines it.
    unsafe { ioctl(node, New) }
}

/// Asks a new userfaultfd for the features that there are; none is turned on.
fn features(fd: impl AsFd) -> Result<u64, Errno> {
    const API: Opcode = opcode::read_write::<uffdio_api>(USERFAULTFD_IOC as u8, _UFFDIO_API as u8);
    let mut api = uffdio_api {
        api: u64::from(UFFD_API),
        features: 0,
        ioctls: 0,
    };
    // SAFETY: the request reads and writes this structure.
    unsafe { ioctl(fd, Updater::<API, _>::new(&mut api)) }?;
    Ok(api.features)
}

/// Tries `PAGEMAP_SCAN` on the page of the stack that this function uses.
fn scan_own_stack() -> Result<(), Errno> {
    let here = 0u8;
    let page = PageNo::containing((&raw const here).addr());
    pagemap::scan(
        page.address()..page.plus(1).address(),
        pagemap::PRESENT,
        |_, _| {},
    )
}
