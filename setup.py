"""Build `parallel_decode._C` from csrc/ and install kernels/ as `parallel_decode.kernels`."""

import hashlib
import os
import platform
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

COMPILE_ARGS = [
    *("-std=c++17", "-O3", "-g0", "-Wall", "-pthread", "-fvisibility=hidden"),
    # The same sums must come out of every ISA and every batch: no contraction that the source does
    # not spell, and no fast-math. -march=native is left out because wheels travel.
    *("-ffp-contract=off", "-fno-math-errno"),
]
AVX2_ARGS = ["-mavx2", "-mfma", "-mf16c"]
AVX512_ARGS = [
    *AVX2_ARGS,
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
    # GCC 12 sees uninitialised vectors in its own _mm512 intrinsics (GCC bug 105593).
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
]
ISA_ARGS = {
    "_avx2": AVX2_ARGS,
    "_avx512": AVX512_ARGS,
    "_avx512vnni": [*AVX512_ARGS, "-mavx512vnni"],
}
# For `make sanitize`: what stands after -fsanitize= there. CPython's own flags would make signed
# overflow a defined thing, which UBSan does not report.
SANITIZERS = os.environ.get("SANITIZE")
SANITIZE_ARGS = [
    *(f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"),
    *("-O1", "-g1", "-fno-wrapv", "-D_GLIBCXX_ASSERTIONS"),
]
NUM_COMPILE_JOBS = 2


def isa_args(source: str) -> list[str]:
    if platform.machine() not in ("x86_64", "AMD64"):
        return []
    stem = Path(source).stem
    return next((args for suffix, args in ISA_ARGS.items() if stem.endswith(suffix)), [])


class BuildNative(build_ext):
    """Compiles each file with the flags of its ISA, in parallel and only when out of date."""

    def build_extension(self, ext: Extension) -> None:
        python_h = Path(sysconfig.get_path("include"), "Python.h")
        if not python_h.exists():
            raise SystemExit(f"{python_h} is missing: install python3-dev (Debian) or its like")
        newest_dependency = max(Path(path).stat().st_mtime for path in ext.depends)
        # pip gives every editable build a new temporary folder. Objects stay in one folder per
        # toolchain instead, so that installing, rebuilding in place and a wheel compile only once.
        sanitize_args = SANITIZE_ARGS if SANITIZERS else []
        python = (pybind11.__version__, sys.implementation.cache_tag)
        toolchain = (self.compiler.compiler_so, sanitize_args, python)
        objects_dir = f"build/objects-{hashlib.sha256(repr(toolchain).encode()).hexdigest()[:12]}"

        def compile_source(source: str) -> str:
            [built] = self.compiler.object_filenames([source], output_dir=objects_dir)
            newest = max(newest_dependency, Path(source).stat().st_mtime)
            if self.force or not Path(built).exists() or Path(built).stat().st_mtime <= newest:
                self.compiler.compile(
                    [source],
                    output_dir=objects_dir,
                    include_dirs=ext.include_dirs,
                    extra_postargs=[*COMPILE_ARGS, *isa_args(source), *sanitize_args],
                )
            return built

        with ThreadPoolExecutor(NUM_COMPILE_JOBS) as pool:
            objects = list(pool.map(compile_source, ext.sources))
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            export_symbols=self.get_export_symbols(ext),
            extra_postargs=["-pthread", *sanitize_args],
            build_temp=self.build_temp,
            target_lang="c++",
        )


setup(
    # A top-level module `kernels` would shadow the package of that name which transformers imports.
    packages=[
        *find_packages(include=["parallel_decode", "parallel_decode.*"]),
        "parallel_decode.kernels",
        *(f"parallel_decode.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"parallel_decode.kernels": "kernels"},
    ext_modules=[
        Extension(
            "parallel_decode._C",
            sources=sorted(map(str, Path("csrc").glob("*.cpp"))),
            depends=["setup.py", *sorted(map(str, Path("csrc").glob("*.h")))],
            include_dirs=["csrc", pybind11.get_include()],
            language="c++",
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
