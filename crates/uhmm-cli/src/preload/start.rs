//! Start: reads what `uhmm run` or `uhmm dmirror` asks for from the environment, and builds the space
//! that the first wants.

use super::{dmirror, internal};
use std::ffi::CString;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering::*};
use uhmm::memory::Memory;
use uhmm::spec::DeviceSpec;
use uhmm::{Builder, Engine, Space};
use uhmm_linux::engine::stacks::needs_unmanaged_memory;

const STARTING: u8 = 0;
const PLAIN: u8 = 1;
const MANAGED: u8 = 2;
const DEVICES: u8 = 3;

static MODE: AtomicU8 = AtomicU8::new(STARTING);
static SPACE: OnceLock<Space> = OnceLock::new();

/// Where an allocation of the calling thread comes from.
#[inline]
pub fn wants_internal() -> bool {
    MODE.load(Relaxed) == STARTING || needs_unmanaged_memory()
}

/// The space's memory, if the calling thread's mappings are to be managed.
pub fn memory() -> Option<&'static Memory> {
    if MODE.load(Acquire) != MANAGED || needs_unmanaged_memory() {
        return None;
    }
    SPACE.get().map(Space::memory)
}

/// The space, once there is one.
pub fn space() -> Option<&'static Space> {
    match MODE.load(Acquire) {
        MANAGED | DEVICES => SPACE.get(),
        _ => None,
    }
}

/// Makes `space` the space of the process, which has none yet.
pub fn keep(space: Space) -> &'static Space {
    SPACE.get_or_init(|| space)
}

/// Whether the program finds devices, and the calling thread is one of the program's.
pub fn has_devices() -> bool {
    MODE.load(Acquire) == DEVICES && !needs_unmanaged_memory()
}

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    let mode = ask().unwrap_or_else(|error| {
        let line = format!("uhmm: this process runs without being managed: {error}\n");
        let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
        PLAIN
    });
    MODE.store(mode, Release);
    debug_assert!(internal::owns(Box::into_raw(Box::new(0u8))));
}

/// Makes ready for what the environment asks for; returns which mode that is.
fn ask() -> Result<u8, Box<dyn std::error::Error>> {
    let get = |name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    if let Some(sizes) = get("UHMM_DMIRROR") {
        // Before the space sets its own hooks, here as below.
        internal::hold_during_forks();
        dmirror::prepare(&sizes)?;
        return Ok(DEVICES);
    }
    let (Some(ram), Some(devices)) = (get("UHMM_RAM"), get("UHMM_DEVICES")) else {
        return Ok(PLAIN);
    };
    internal::hold_during_forks();
    // Programs give their memory to system calls, whatever `UHMM_ENGINE` says.
    let mut builder = Builder::new(ram.parse()?).engine(Engine::Thread);
    for spec in DeviceSpec::parse_list(&devices, u64::MAX)? {
        builder = builder.device(spec.build());
    }
    if let Some(path) = get("UHMM_STATS") {
        builder = builder.stats_file(&CString::new(path)?)?;
    }
    keep(builder.build()?);
    Ok(MANAGED)
}
