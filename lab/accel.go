package lab

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How a guest's processor is run.
const (
	accelAuto = "auto"
	accelKVM  = "kvm"
	accelTCG  = "tcg"
)

const qemuBinary = "qemu-system-x86_64"

// kvmTrial bounds the trial boot. With KVM the kernel is through in under two
// seconds; where /dev/kvm opens but does not carry a guest, it hangs.
const kvmTrial = 15 * time.Second

// bootedMark is what a Linux kernel prints when it is through and begins the
// initial RAM disk's program.
const bootedMark = "Run /init as init process"

// chooseAccel decides between KVM and TCG by booting the kernel, because there are
// machines where /dev/kvm opens and Linux guests still do not boot. The answer
// is kept in the cache until the machine boots again or kernel or QEMU change.
func chooseAccel(ctx context.Context, log *slog.Logger, cacheDir, want, kernel, initrd string) (accel, why string, err error) {
	switch want {
	case accelTCG:
		return accelTCG, "the lab file says so", nil
	case accelKVM:
		if kernel == "" {
			return accelKVM, "the lab file says so", nil
		}
	}
	if err := unix.Access("/dev/kvm", unix.R_OK|unix.W_OK); err != nil {
		return notKVM(want, "there is no usable /dev/kvm")
	}
	if kernel == "" {
		return accelTCG, "no image has a kernel to try KVM with; set accel: kvm to use it", nil
	}
	kept := filepath.Join(cacheDir, "accel-"+trialKey(ctx, kernel))
	if b, err := os.ReadFile(kept); err == nil {
		if string(b) == accelKVM {
			return accelKVM, "a guest kernel booted under it before", nil
		}
		return notKVM(want, "a guest kernel did not boot under KVM here before")
	}
	log.Info("trying whether a guest boots under KVM", "limit", kvmTrial)
	ok, err := tryKVM(ctx, kernel, initrd)
	if err != nil {
		return "", "", err
	}
	answer := accelTCG
	if ok {
		answer = accelKVM
	}
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return "", "", err
	}
	if err := os.WriteFile(kept, []byte(answer), 0o644); err != nil {
		return "", "", err
	}
	if !ok {
		return notKVM(want, fmt.Sprintf("/dev/kvm is there, but a guest kernel did not boot under it within %s", kvmTrial))
	}
	return accelKVM, "a guest kernel booted under it", nil
}

func notKVM(want, why string) (string, string, error) {
	if want == accelKVM {
		return "", "", fmt.Errorf("accel: kvm cannot be had: %s; want accel: auto or tcg", why)
	}
	return accelTCG, why, nil
}

// tryKVM boots the kernel under KVM and reports whether it comes through.
func tryKVM(ctx context.Context, kernel, initrd string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, kvmTrial)
	defer cancel()
	args := []string{
		"-accel", accelKVM, "-m", "256", "-display", "none", "-monitor", "none", "-nic", "none",
		"-no-reboot", "-serial", "stdio", "-kernel", kernel, "-append", "console=ttyS0 panic=-1",
	}
	if initrd != "" {
		args = append(args, "-initrd", initrd)
	}
	// A hung trial must not outlive this process, whatever ends it. The kernel
	// ties that to the thread which starts the process, so it has to stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, qemuBinary, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return false, err
	}
	if err := cmd.Start(); err != nil {
		return false, err
	}
	booted := false
	for lines := bufio.NewScanner(out); !booted && lines.Scan(); {
		booted = strings.Contains(lines.Text(), bootedMark)
	}
	cancel()
	_, _ = io.Copy(io.Discard, out)
	_ = cmd.Wait() // it was killed, or did not start under KVM: both are answers
	return booted, nil
}

// trialKey names what the trial's answer depends on.
func trialKey(ctx context.Context, kernel string) string {
	h := sha256.New()
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	version, _ := exec.CommandContext(ctx, qemuBinary, "--version").Output()
	fmt.Fprintf(h, "%s\n%s\n", boot, version)
	// By content, so that a copy of a kernel is not tried again. A kernel that
	// cannot be read fails the trial, too.
	if f, err := os.Open(kernel); err == nil {
		_, _ = io.Copy(h, f)
		_ = f.Close()
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}
