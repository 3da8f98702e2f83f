//! The examples are what they say: an outsider's device is complete in under 100 lines, obeys the
//! rules of devices, and keeps the fault path free of the heap (R18).

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use uhmm::device::{CopyOutError, Device, DevicePage, PageData};

#[path = "../examples/custom_device.rs"]
mod custom_device;
#[path = "common/heap.rs"]
mod heap;

use custom_device::FileDevice;
use heap::heap_calls;

const TEXT: &str = include_str!("../examples/custom_device.rs");

#[test]
fn a_device_takes_under_100_lines() {
    let lines = TEXT.lines().count();
    assert!(lines < 100, "{lines} lines");
}

#[test]
fn the_custom_device_conforms() {
    uhmm_testkit::conformance(|| FileDevice::new(1 << 16).expect("a file"));
}

#[test]
fn the_custom_device_conforms_when_it_has_few_pages() {
    for pages in [1, 65] {
        uhmm_testkit::conformance(|| FileDevice::new(pages).expect("a file"));
    }
}

#[test]
fn a_fault_on_the_custom_device_does_not_use_the_heap() {
    let device = FileDevice::new(64).expect("a file");
    let (page, beyond) = (DevicePage(3), DevicePage(40));
    let mut found = PageData::ZERO;
    device.copy_in(page, &PageData([7; _])).expect("room");
    let calls = heap_calls(|| {
        assert_eq!(device.copy_out(page, &mut found), Ok(()));
        assert_eq!(
            device.copy_out(beyond, &mut found),
            Err(CopyOutError::Lost),
            "a page that is not in the file is lost, and no zeros"
        );
        device.free(page);
    });
    assert_eq!(calls, 0);
}

/// Runs an example, and gives what it prints.
fn output_of(example: &str) -> String {
    let test = std::env::current_exe().expect("this test's own path");
    let built = test.parent().and_then(|deps| deps.parent());
    let path = built
        .expect("target directory")
        .join("examples")
        .join(example);
    let command = Command::new(&path).stdout(Stdio::piped()).spawn();
    let mut child = command.unwrap_or_else(|error| {
        panic!(
            "{}: {error}: `cargo test -p uhmm` builds it",
            path.display()
        );
    });
    let begin = Instant::now();
    while child.try_wait().expect("our child").is_none() {
        if begin.elapsed() > Duration::from_secs(60) {
            let _ = child.kill();
            panic!("{example} hangs");
        }
        thread::sleep(Duration::from_millis(5));
    }
    let ended = child.wait_with_output().expect("our child");
    let output = String::from_utf8(ended.stdout).expect("text");
    assert!(ended.status.success(), "{}: {output}", ended.status);
    output
}

/// The numbers in a text, in their order.
fn numbers(text: &str) -> Vec<u64> {
    let digits = text.split(|c: char| !c.is_ascii_digit());
    digits.filter_map(|digits| digits.parse().ok()).collect()
}

#[test]
fn the_first_program_adds_up_four_times_its_ram() {
    let output = output_of("first_region");
    let line = |begin: &str| {
        let found = output.lines().find(|line| line.contains(begin));
        numbers(found.unwrap_or_else(|| panic!("no {begin:?} in {output}")))
    };
    let count = 64 << 20 >> 3;
    assert_eq!(line("the sum of"), [count, count * (count - 1) / 2]);
    // The second half has come in since.
    let [ram, device] = line("of the first half")[..] else {
        panic!("{output}");
    };
    assert!(
        ram < 4096 && device > 4096 && ram + device <= 8192,
        "{output}"
    );
    assert_eq!(line("RAM: ")[2..4], [16, 0], "the budget, {output}");
    assert!(line("to devices,")[0] > 3 * 4096, "{output}");
    assert!(line("were mapped").contains(&(64 << 20)), "{output}");
    assert!(line("pushed out")[0] > 0, "{output}");
}

#[test]
fn the_custom_device_holds_what_does_not_fit() {
    let output = output_of("custom_device");
    assert_eq!(output.lines().count(), 1, "{output}");
    let (_, sizes) = output.rsplit_once(':').expect("sizes");
    let [ram, file] = numbers(sizes)[..] else {
        panic!("{output}");
    };
    assert!(ram <= 16 && file >= 40, "{output}");
}

#[test]
fn a_device_is_removed_and_nothing_is_lost() {
    let output = output_of("device_removal");
    let lines: Vec<_> = output.lines().collect();
    let [before, removed, counted] = lines[..] else {
        panic!("{output}");
    };
    let [_threads, pages, on_device] = numbers(before)[..] else {
        panic!("{before}");
    };
    assert!(on_device > pages / 2, "{before}");
    assert!(removed.contains(": 0 pages left on it"), "{removed}");
    assert!(numbers(counted)[0] > 100, "{counted}");
    assert!(counted.ends_with(" 0 pages lost"), "{counted}");
    let text = include_str!("../examples/device_removal.rs");
    assert!(text.lines().count() < 100);
}

#[test]
fn a_small_device_works_on_sixteen_times_its_size() {
    let output = output_of("oversubscribe");
    let lines: Vec<_> = output.lines().collect();
    let [device, evicted, checked] = lines[..] else {
        panic!("{output}");
    };
    let [on_device, passes, pages] = numbers(device)[..] else {
        panic!("{device}");
    };
    assert_eq!(pages, 16 * on_device, "{device}");
    // All but what is on it at the end has left again, in each pass.
    assert!(
        numbers(evicted)[0] >= passes * pages - on_device,
        "{evicted}"
    );
    assert!(checked.starts_with("0 words are wrong"), "{checked}");
}

#[test]
fn a_file_is_copied_through_a_buffer_that_does_not_fit() {
    let output = output_of("pinned_io");
    let [copied, .., ram, pins] = numbers(&output)[..] else {
        panic!("{output}");
    };
    assert!(copied >= 4 * ram && ram > 0, "{output}");
    assert_eq!(
        pins,
        2 * copied * 256,
        "each page once for each way: {output}"
    );
    assert!(include_str!("../examples/pinned_io.rs").lines().count() < 100);
}

#[test]
fn the_program_and_a_device_count_in_the_same_bins() {
    let output = output_of("exclusive_atomics");
    let [samples, bins, by_device, taken] = numbers(&output)[..] else {
        panic!("{output}");
    };
    assert!(samples > 1_000_000 && bins == 256, "{output}");
    assert!(by_device > 0 && taken > 0, "{output}");
    let text = include_str!("../examples/exclusive_atomics.rs");
    assert!(text.lines().count() < 100);
}
