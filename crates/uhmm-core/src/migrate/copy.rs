//! Copy: bytes go to their destinations, a batch a call.

use super::{Copied, Destination, Hands, Item, Origin};
use crate::addr::{DeviceAddr, DevicePage, PageData};
use crate::device::CopyOutError;
use crate::fault::ZEROS;
use crate::frames::Frame;
use crate::mmu::Mmu;
use crate::pagemap::{BATCH, Started};
use crate::store::CopiedIn;
use arrayvec::ArrayVec;

impl<M: Mmu> Hands<'_, M> {
    pub(super) fn copy(&mut self) {
        self.read_devices();
        self.write_devices();
    }

    /// Brings the bytes of all pages that leave a device into buffers.
    fn read_devices(&mut self) {
        let leaves = |item: &Item<'_, M>| match (&item.origin, item.to) {
            (Origin::Device { at, .. }, Some(_)) if item.migrate => Some(*at),
            _ => None,
        };
        let mut next = 0;
        while next < self.items.len() {
            let Some(first) = leaves(&self.items[next]) else {
                next += 1;
                continue;
            };
            let batch: ArrayVec<DeviceAddr, BATCH> = self.items[next..]
                .iter()
                .map_while(leaves)
                .take_while(|at| at.device == first.device)
                .take(BATCH)
                .collect();
            let mut buffer = self.space.buffers.take();
            let results = self.space.load_batch(&batch, &mut buffer[..batch.len()]);
            let number = self.buffers.len();
            self.buffers.push(buffer);
            for (index, result) in results.into_iter().enumerate() {
                self.items[next + index].copied = match result {
                    Ok(()) => Copied::ToBuffer {
                        buffer: number,
                        index,
                    },
                    Err(CopyOutError::Lost) => Copied::Lost,
                    Err(CopyOutError::Retry) => Copied::No,
                };
            }
            next += batch.len();
        }
    }

    /// Copies to device pages, from wherever the bytes are.
    fn write_devices(&mut self) {
        let mut next = 0;
        while next < self.items.len() {
            let device = |item: &Item<'_, M>| match item.to {
                Some(Destination::Device(at)) if item.migrate && self.bytes_are_here(item) => {
                    Some(at)
                }
                _ => None,
            };
            let Some(first) = device(&self.items[next]) else {
                next += 1;
                continue;
            };
            let to: ArrayVec<DevicePage, BATCH> = self.items[next..]
                .iter()
                .map_while(device)
                .take_while(|at| at.device == first.device)
                .take(BATCH)
                .map(|at| at.page)
                .collect();
            let (results, fence) = self.copy_batch(next, first.device, &to);
            let fence = fence.map(|fence| {
                self.fences.push(fence);
                self.fences.len() - 1
            });
            for (i, result) in results.into_iter().enumerate() {
                self.items[next + i].copied = match result {
                    Ok(()) => Copied::ToDevice { fence },
                    Err(_) => Copied::No,
                };
            }
            self.space
                .device(first.device)
                .count_stored(self.space.device_stats(first.device));
            next += to.len();
        }
    }

    fn bytes_are_here(&self, item: &Item<'_, M>) -> bool {
        !matches!(item.origin, Origin::Device { .. })
            || matches!(item.copied, Copied::ToBuffer { .. })
    }

    fn copy_batch(
        &self,
        first: usize,
        device: u8,
        to: &[DevicePage],
    ) -> (CopiedIn, Option<Started>) {
        let items = &self.items[first..first + to.len()];
        let frames: ArrayVec<&Frame, BATCH> = items
            .iter()
            .filter_map(|item| match &item.origin {
                Origin::Frame(frame) => Some(frame),
                _ => None,
            })
            .collect();
        let mut done = None;
        self.space.mmu.with_frames(&frames, &mut |frames| {
            let mut frames = frames.iter();
            let from: ArrayVec<&PageData, BATCH> = items
                .iter()
                .map(|item| match (&item.origin, &item.copied) {
                    (Origin::Frame(_), _) => frames.next().expect("one for each"),
                    (Origin::Bytes { data, .. }, _) => &**data,
                    (_, &Copied::ToBuffer { buffer, index }) => &self.buffers[buffer][index],
                    _ => &ZEROS[0],
                })
                .collect();
            done = Some(self.space.copy_in(device, &from, to));
        });
        done.expect("the frames' bytes were given")
    }
}
