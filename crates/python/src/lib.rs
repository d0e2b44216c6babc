//! The Python face: converts, releases the GIL, translates errors. Everything else is Rust below or Python above.
mod array;
mod asked;
mod canvas;
mod driver;
mod engine;
mod error;
mod flight;
mod judge;
mod link;
mod neurons;
mod outcome;
mod plan;
mod processor;
mod rerank;
mod sequence;
mod ticket;
mod trigrams;
mod watermark;

/// The compiled half of omnidecode. Use the package `omnidecode`, not this module.
#[pyo3::pymodule]
mod _core {
    #[pymodule_export]
    use crate::array::Array;
    #[pymodule_export]
    use crate::canvas::{PyCanvas, PyView};
    #[pymodule_export]
    use crate::engine::PyEngine;
    #[pymodule_export]
    use crate::flight::{Flight, gather};
    #[pymodule_export]
    use crate::judge::Candidate;
    #[pymodule_export]
    use crate::neurons::PyNeurons;
    #[pymodule_export]
    use crate::outcome::{Outcome, Seen};
    #[pymodule_export]
    use crate::plan::{PyPlan, PyRow, PyTree};
    #[pymodule_export]
    use crate::rerank::{listwise_labels, listwise_order, listwise_question, listwise_windows};
    #[pymodule_export]
    use crate::sequence::PySequence;
    #[pymodule_export]
    use crate::ticket::{Bell, Chunk, Ticket};
    #[pymodule_export]
    use crate::trigrams::PyTrigramCounts;
    #[pymodule_export]
    use crate::watermark::PyDetector;
    use pyo3::prelude::*;

    #[pymodule_export]
    #[allow(non_upper_case_globals)]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    /// The registry of strategies, as JSON: a list of {name, guarantee, needs, summary, source, parameters}.
    #[pyfunction]
    fn strategies() -> String {
        omnidecode::registry_json().to_string()
    }
    /// Roles that models beside the main one may have: (role, what asks for it).
    #[pyfunction]
    fn roles() -> Vec<(&'static str, &'static str)> {
        omnidecode::strategies::ROLES.to_vec()
    }
    /// The registry of companions, as JSON: a list of {name, bends, summary, source, parameters}.
    #[pyfunction]
    fn companions() -> String {
        omnidecode::companions_json().to_string()
    }
    /// What a strategy guarantees with these parameters, given as a JSON object; raises what is wrong with them.
    #[pyfunction]
    fn check_strategy(name: &str, parameters: &str) -> PyResult<&'static str> {
        let options = crate::asked::options(parameters)?;
        let strategy = omnidecode::strategy(name, &options).map_err(crate::error::to_python)?;
        Ok(strategy.guarantee.as_str())
    }
    /// What of CUDA is in this build and on this machine, as JSON: {built, kernels, driver, devices, missing, library}. Opens the driver.
    #[pyfunction]
    fn cuda() -> String {
        omnidecode::cuda_json().to_string()
    }
    /// Run every check of the kernels on a GPU, as JSON: a list of {name, seconds, error}.
    #[pyfunction]
    fn check_cuda(py: Python<'_>, device: &str) -> PyResult<String> {
        let device = device.parse().map_err(crate::error::to_python)?;
        let checks = py.detach(|| omnidecode::check_cuda_json(device)).map_err(crate::error::to_python)?;
        Ok(checks.to_string())
    }
    /// What the engine sees of this machine, as JSON.
    #[pyfunction]
    fn machine() -> String {
        omnidecode::machine_json().to_string()
    }
}
