//! Start: reads what `uhmm run` asks for from the environment, and builds the space.

use super::internal;
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
    (MODE.load(Acquire) == MANAGED)
        .then(|| SPACE.get())
        .flatten()
}

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    let mode = match build() {
        Ok(Some(space)) => {
            let _ = SPACE.set(space);
            MANAGED
        }
        Ok(None) => PLAIN,
        Err(error) => {
            let line = format!("uhmm: this process runs without being managed: {error}\n");
            let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
            PLAIN
        }
    };
    MODE.store(mode, Release);
    debug_assert!(internal::owns(Box::into_raw(Box::new(0u8))));
}

/// What the environment asks for, or `None` if nothing.
fn build() -> Result<Option<Space>, Box<dyn std::error::Error>> {
    let get = |name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let (Some(ram), Some(devices)) = (get("UHMM_RAM"), get("UHMM_DEVICES")) else {
        return Ok(None);
    };
    // Before the space sets its own hooks.
    internal::hold_during_forks();
    // Programs give their memory to system calls, whatever `UHMM_ENGINE` says.
    let mut builder = Builder::new(ram.parse()?).engine(Engine::Thread);
    for spec in DeviceSpec::parse_list(&devices, u64::MAX)? {
        builder = builder.device(spec.build());
    }
    if let Some(path) = get("UHMM_STATS") {
        builder = builder.stats_file(&CString::new(path)?)?;
    }
    Ok(Some(builder.build()?))
}
