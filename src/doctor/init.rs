//! Whether the driver could be loaded and initialised, and what helps if not. Pure.

use greenboost_abi::{CUDA_ERROR_NO_DEVICE, CUDA_SUCCESS};

use super::driver::Driver;
use super::gpu::Place;
use super::{Finding, Level};

/// `13000` as `13.0`.
pub fn version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// The finding about the driver itself.
pub fn about_driver(driver: &Driver, place: &Place) -> Finding {
    let finding = |level, text: String| Finding::new("driver", level, text);
    if let Some(error) = &driver.load_error {
        let advice = if place.is_wsl {
            "install NVIDIA's driver in Windows; it brings /usr/lib/wsl/lib/libcuda.so.1"
        } else if place.container.is_some() {
            "start the container with the GPU (docker: --gpus all, podman: --device nvidia.com/gpu=all)"
        } else {
            "install NVIDIA's driver; `greenboost selftest --simulated` needs none"
        };
        return finding(
            Level::Impossible,
            format!("libcuda.so.1 cannot be loaded ({error})"),
        )
        .advise(advice);
    }
    let Some(library) = &driver.library else {
        // It ended before it had loaded anything: the finding that follows says how.
        return finding(Level::Note, "nothing is known about it".into());
    };
    let module = place
        .module
        .as_ref()
        .map(|m| format!(", kernel module {m}"))
        .unwrap_or_default();
    let name = if driver.simulated {
        "greenboost's SIMULATED driver for CUDA"
    } else {
        "CUDA"
    };
    let text = format!(
        "{name} {}{module}, {}",
        version(driver.version),
        library.display()
    );
    match driver.init {
        None => finding(Level::Note, text),
        Some(CUDA_SUCCESS) if driver.simulated => finding(Level::Note, text).advise(
            "what follows says nothing about a GPU; unset LD_LIBRARY_PATH to see the real one",
        ),
        Some(CUDA_SUCCESS) => finding(Level::Fine, text),
        Some(code) => {
            let (name, advice) = init_error(code, place);
            finding(Level::Impossible, format!("{text}: cuInit says {name}")).advise(&advice)
        }
    }
}

/// The name of what `cuInit` returned, and what helps.
fn init_error(code: i32, place: &Place) -> (String, String) {
    let (name, advice) = match code {
        CUDA_ERROR_NO_DEVICE => ("no device", no_device_advice(place)),
        34 => (
            "that it is a stub",
            "remove the CUDA toolkit's stubs directory from LD_LIBRARY_PATH".into(),
        ),
        46 => (
            "device unavailable",
            "another process has it for itself (nvidia-smi -q -d COMPUTE)".into(),
        ),
        802 => (
            "not ready",
            "on NVSwitch machines start nvidia-fabricmanager".into(),
        ),
        803 => (
            "that library and kernel module differ",
            "reboot, or load the module that came with the driver".into(),
        ),
        804 => (
            "that a compatibility library does not suit this card",
            "remove cuda-compat from LD_LIBRARY_PATH".into(),
        ),
        999 => (
            "an unknown error",
            "try `nvidia-modprobe -u -c=0`, then look for Xid lines in `dmesg`".into(),
        ),
        _ => (
            "an error",
            "try `nvidia-smi`, then look for Xid lines in `dmesg`".into(),
        ),
    };
    (format!("{name} ({code})"), advice)
}

/// The finding when there is none.
pub fn no_device(place: &Place) -> Finding {
    Finding::new("gpu", Level::Impossible, "the driver sees no device".into())
        .advise(&no_device_advice(place))
}

fn no_device_advice(place: &Place) -> String {
    match (&place.visible, &place.container) {
        (Some(list), _) => format!("CUDA_VISIBLE_DEVICES is '{list}': unset it or name a device"),
        (None, Some(_)) => {
            "start the container with the GPU (docker: --gpus all, podman: --device nvidia.com/gpu=all)".into()
        }
        (None, None) => "look at what `nvidia-smi -L` lists".into(),
    }
}
