"""Draw a Lottie animation with rlottie in a process of its own: JSON on stdin, premultiplied BGRA frames on stdout.

    python -I -S lottie_renderer.py FOLDER_WITH_RLOTTIE CPU_SECONDS WIDTH HEIGHT FRAMES < sticker.json > frames.raw

rlottie is C++ that broken files can crash, hang or fill the memory with. Here that ends this process and no other one.
The file is run by its path and imports nothing of the package, so that it starts in a few milliseconds.
"""

import os
import sys


MAX_MEMORY = 256 * 2**20
MEMORY_PER_CORE = 16 * 2**20  # rlottie starts a thread for every core, each with a stack


def limit_resources(cpu_seconds: float) -> None:
    """Bound processor time, memory and core dumps where the system can (not on Windows)."""
    if os.name != "posix":
        return
    import resource
    import signal

    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # ends the process; finer than RLIMIT_CPU's whole seconds
    memory = MAX_MEMORY + MEMORY_PER_CORE * (os.cpu_count() or 1)
    for kind, limit in ((resource.RLIMIT_DATA, memory), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def main(folder: str, cpu_seconds: str, *sizes: str) -> None:
    width, height, frames = map(int, sizes)
    sys.path.insert(0, folder)
    from rlottie_python import LottieAnimation

    limit_resources(float(cpu_seconds))
    animation = LottieAnimation.from_data(sys.stdin.read())
    if not animation.animation_p:
        sys.exit(1)
    for frame in range(frames):
        sys.stdout.buffer.write(animation.lottie_animation_render(frame, width=width, height=height))


if __name__ == "__main__":
    main(*sys.argv[1:])
