//! How much stack a fault takes: the handler runs on the thread's own.

use crate::{alone, builder};
use std::ffi::c_void;
use std::ptr::null_mut;
use uhmm::devices::Lz4Device;
use uhmm::{Builder, Engine, Space};
use uhmm_core::addr::PAGE_SIZE;

const STACK: usize = 512 << 10;
const PAINT: u8 = 0xa5;
/// What `docs/faults.md` promises, beside the kernel's own frame.
const MOST: usize = 20 << 10;

struct Touch {
    address: usize,
    pages: usize,
}

/// Writes to each page.
extern "C" fn touch_all(touch: *mut c_void) -> *mut c_void {
    // SAFETY: lives until this thread has ended, as does the region.
    unsafe {
        let touch = &*touch.cast::<Touch>();
        for page in 0..touch.pages {
            let word = (touch.address + page * 7919 % touch.pages * PAGE_SIZE) as *mut u64;
            word.write_volatile(word.read_volatile() + page as u64);
        }
    }
    null_mut()
}

/// Bytes of stack that a thread takes which does so.
fn stack_used(space: &Space, pages: usize) -> usize {
    let region = space.region(pages.max(1) * PAGE_SIZE).unwrap();
    let mut touch = Touch {
        address: region.as_ptr() as usize,
        pages,
    };
    let mut stack = vec![PAINT; STACK + 64];
    let start = stack.as_mut_ptr().align_offset(64);
    // SAFETY: the stack is within the vector, and nobody else's while the thread runs.
    unsafe {
        let mut attributes = std::mem::zeroed();
        libc::pthread_attr_init(&mut attributes);
        let bottom = stack.as_mut_ptr().add(start);
        assert_eq!(
            libc::pthread_attr_setstack(&mut attributes, bottom.cast(), STACK),
            0
        );
        let argument = (&raw mut touch).cast();
        for _ in 0..3 {
            let mut thread = 0;
            let started = libc::pthread_create(&mut thread, &attributes, touch_all, argument);
            assert_eq!(started, 0);
            libc::pthread_join(thread, null_mut());
        }
    }
    let untouched = stack[start..].iter().take_while(|&&byte| byte == PAINT);
    STACK - untouched.count()
}

#[test]
fn a_fault_takes_little_stack_even_where_ram_is_short() {
    let _alone = alone();
    let roomy = builder(Engine::Signal).build().unwrap();
    let (few, nothing) = (stack_used(&roomy, 256), stack_used(&roomy, 0));
    // Every fault unmaps a few pages, and reads what lz4 has.
    let tight = Builder::new(2 << 20)
        .device(Box::new(Lz4Device::new(64 << 20)))
        .engine(Engine::Signal)
        .build()
        .unwrap();
    let many = stack_used(&tight, 4096);
    println!(
        "a thread takes {nothing} bytes of stack, with faults {few}, where RAM is short {many}"
    );
    assert!(few > nothing && many > nothing, "the handler was not seen");
    // SAFETY: asks for a number.
    let frame = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) } as usize;
    assert!(many - nothing <= MOST + frame, "{many}");
}
