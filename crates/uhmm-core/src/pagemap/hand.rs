//! The clock hand of a device: which of its pages are cold.
//!
//! Device pages have no accessed bits. What is known of a page is when it was handed out, and that
//! somebody has worked with it since the hand last came by: a view, a hold, a mirror, a read of the page
//! that it is the duplicate of. So the hand goes over the pages in order, which is about the order in
//! which they were handed out, spares what is *used* once, and passes by what is held or young (R20). Of a block of pages, the one
//! that is warmest decides.
//!
//! The hand is locked for one round of looking, in which nothing is waited for and no call is made. Two
//! that look at the same time find different pages.

use super::DeviceMemory;
use super::chunk::{DevPagemap, Met};
use crate::addr::{DevicePage, PageNo};
use crate::stay::Stamp;
use std::ops::Deref;
use std::sync::atomic::AtomicU64;

/// Where the next look begins: a page's number.
#[derive(Default)]
pub(super) struct Hand(usize);

/// What a look has found.
#[derive(Debug, Default)]
pub(crate) struct Picked {
    /// Cold pages.
    pub(crate) pages: Vec<DevicePage>,
    /// Whether there are pages that are only too young.
    pub(crate) young: bool,
}

impl<T: Deref<Target = [AtomicU64]>> DeviceMemory<T> {
    /// Picks up to `pages` of the coldest pages, in blocks of `1 << order` that are free as a whole
    /// without them, and at least one such block. Goes round twice at most: a first time for what is
    /// spared. `leaves` says whether the page of the space that has a device page can be taken away; it
    /// must not wait.
    pub(crate) fn pick(
        &self,
        order: u32,
        pages: usize,
        now: Stamp,
        leaves: &dyn Fn(PageNo) -> bool,
    ) -> Picked {
        let block = 1 << order;
        let met = |chunk: &DevPagemap<T>, page| chunk.met(page, now, leaves);
        let mut picked = Picked::default();
        let mut hand = self.hand.lock();
        let mut left = 2 * self.capacity;
        while picked.pages.len() + block <= pages.max(block) && left > 0 {
            if hand.0 >= self.capacity {
                hand.0 = 0;
            }
            let at = hand.0 - hand.0 % block;
            let chunk_end = (at / self.chunk_pages() + 1) * self.chunk_pages();
            let first = DevicePage(at as u32);
            let chunk = self.chunk(at / self.chunk_pages());
            let handed_out = |chunk: &&DevPagemap<T>| first < chunk.end_of_used();
            hand.0 = match chunk.filter(|chunk| chunk.is_alive()).filter(handed_out) {
                Some(chunk) => {
                    let end = (at + block).min(chunk_end).min(self.capacity);
                    if end - at == block {
                        look(chunk, first, block, &met, &mut picked);
                    }
                    end
                }
                // Nothing of the rest of the chunk is in use.
                None => chunk_end,
            };
            left = left.saturating_sub(hand.0 - at);
        }
        picked
    }
}

/// Comes by a block of `len` pages of `chunk` from `first` on: it is picked, or spared for the last time,
/// or passed by.
fn look<T: Deref<Target = [AtomicU64]>>(
    chunk: &DevPagemap<T>,
    first: DevicePage,
    len: usize,
    met: &dyn Fn(&DevPagemap<T>, DevicePage) -> Met,
    picked: &mut Picked,
) {
    let that_are = |what| {
        let pages = (0..len).map(|i| first.plus(i));
        pages.filter(move |&page| met(chunk, page) == what)
    };
    if that_are(Met::Held).next().is_some() {
        return;
    }
    if that_are(Met::Young).next().is_some() {
        picked.young = true;
        return;
    }
    let mut used = that_are(Met::Used).peekable();
    if used.peek().is_none() {
        picked.pages.extend(that_are(Met::Cold));
    }
    used.for_each(|page| chunk.clear_used(page));
}
