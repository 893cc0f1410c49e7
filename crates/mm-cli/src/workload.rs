//! How large a request is, and what computing it is estimated to take.

use crate::args::{DeviceName, PlanArgs};
use crate::exit::{Failure, say};
use crate::size::show;
use mm_plan::{Component, DType, DeviceKind, Infeasible, Note, Plan};
use mm_probe::{Checkpoint, Workload};
use std::path::Path;

/// Pixels of a side where neither the request nor the checkpoint says.
const SIDE: u32 = 1024;

/// The request that the flags describe; `None`: they say nothing of its size, and activations stay unknown.
pub(crate) fn asked(args: &PlanArgs, checkpoint: &Path) -> Option<Workload> {
    if args.width.is_none() && args.height.is_none() && args.batch.is_none() {
        return None;
    }
    let (on_host, side) = (args.device == Some(DeviceName::Cpu), side(checkpoint));
    let default = if on_host { DType::F32 } else { DType::Bf16 };
    Some(Workload {
        width: args.width.unwrap_or(side),
        height: args.height.unwrap_or(side),
        batch: args.batch.unwrap_or(1),
        dtype: args.dtype.map_or(default, Into::into),
        // As pipelines do unless told otherwise.
        guided: true,
        device: if on_host { DeviceKind::Host } else { DeviceKind::Discrete },
        ..Workload::default()
    })
}

/// Tells the planner what each component is estimated to take on top of its weights, and people where that is not known.
pub(crate) fn attach(components: &mut [Component], checkpoint: &Checkpoint, workload: &Workload) {
    let estimates = checkpoint.activations(workload);
    for component in components {
        component.activation = estimates.get(component.name.as_str()).copied().or(component.activation);
        if component.activation.is_none() && component.same_as.is_none() {
            let name = &component.name;
            say(format_args!("{name}: what computing it takes is not known, and nothing is kept free for it"));
        }
    }
}

/// Why so much is needed, where that is not the weights.
pub(crate) fn explain(failure: &Failure, checkpoint: &Checkpoint, workload: Option<&Workload>) {
    let Failure::Infeasible(Infeasible::NeverFits { component, .. } | Infeasible::NotNow { component, .. }) = failure
    else {
        return;
    };
    if let Some(workload) = workload
        && let Some(activation) = checkpoint.activations(workload).get(component.as_str())
    {
        let (Workload { width, height, batch, .. }, bytes) = (workload, show(activation.bytes));
        say(format_args!(
            "computing {batch} × {width}×{height} pixels with guidance is estimated to take {bytes} of that in `{component}`; a \
             smaller --width, --height or --batch takes less"
        ));
    }
}

/// On the CPU a budget is for weights alone, as it is for `mm run`: what comes on top is told.
pub(crate) fn note(plan: &mut Plan, checkpoint: &Checkpoint, workload: &Workload) {
    let estimates = checkpoint.activations(workload);
    let Some((name, most)) = estimates.iter().max_by_key(|(_, activation)| activation.bytes) else { return };
    let text = format!(
        "{name}: computing {}×{} pixels is estimated to take {} on top of the weights, outside the budget.",
        workload.width,
        workload.height,
        show(most.bytes)
    );
    plan.notes.push(Note::new("activation_estimated", &[("activation", most.bytes)], text).about(name));
}

/// The side of the images that the checkpoint's VAE was made for.
pub(crate) fn side(checkpoint: &Path) -> u32 {
    let config = mm_probe::read_config(checkpoint.join("vae/config.json")).ok();
    let side = config.and_then(|config| config.get("sample_size")?.as_u64());
    side.and_then(|side| u32::try_from(side).ok()).filter(|side| *side > 0).unwrap_or(SIDE)
}
