package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// Run starts the holder of a node and returns its process id on the machine
// once the node is set up. exe is the drover binary, lab the lab's folder; the
// node's Config must have been written. The holder lives on when the caller
// ends; when Run fails, no holder is left.
func Run(ctx context.Context, exe, lab, name string) (pid int, err error) {
	dir := Dir(lab, name)
	out, err := os.OpenFile(HolderLog(dir), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	cmd := exec.Command(exe, Subcommand, "--lab", lab, "--node", name)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = environment()
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true,
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS |
			syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	if err := StartAndWait(ctx, cmd); err != nil {
		return 0, fmt.Errorf("node %s: %w", name, err)
	}
	return cmd.Process.Pid, nil
}

// environment is what a node's programs see: no more of the caller's than they
// need, and the lab's drover before any other.
func environment() []string {
	env := []string{
		"PATH=" + Path,
		"HOME=/root", "LANG=C.UTF-8",
	}
	// Coverage of the processes that a test starts is collected where Go is told.
	if v, ok := os.LookupEnv("GOCOVERDIR"); ok {
		env = append(env, "GOCOVERDIR="+v)
	}
	return env
}

// StartAndWait starts a background process of a lab and returns when it has
// written "ok" on its first extra file, or with what it wrote instead. When it
// fails, or ctx ends first, the process is killed and collected.
func StartAndWait(ctx context.Context, cmd *exec.Cmd) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd.ExtraFiles = []*os.File{w}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return err
	}
	unhook := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	word, err := io.ReadAll(io.LimitReader(r, maxReadyText))
	if !unhook() {
		err = ctx.Err()
	}
	if err == nil && string(word) == readyWord {
		return nil
	}
	_ = cmd.Process.Kill() // it may have ended by itself
	waitErr := cmd.Wait()
	switch {
	case err != nil:
		return err
	case len(word) > 0:
		return errors.New(string(word))
	default:
		return fmt.Errorf("ended before it was ready: %w", waitErr)
	}
}

// maxReadyText bounds what a starting process may say on its ready pipe; an
// error is one line.
const maxReadyText = 4096

// readyFD is the pipe on which a starting process says "ok" or what went wrong:
// the first of exec.Cmd.ExtraFiles.
const readyFD = 3

// readyWord on the ready pipe means that the process is set up and answers.
const readyWord = "ok"

// Ready tells the starter of this process that it is ready; see StartAndWait.
func Ready() error { return tell(readyWord) }

// NotReady tells the starter of this process why it cannot start. After Ready,
// or without a starter, nobody hears it.
func NotReady(cause error) { _ = tell(cause.Error()) }

func tell(word string) error {
	// Without a starter the descriptor is somebody else's, or nobody's.
	var st unix.Stat_t
	if err := unix.Fstat(readyFD, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return errors.New("this command is for drover lab up alone")
	}
	f := os.NewFile(readyFD, "ready")
	_, err := io.WriteString(f, word)
	return errors.Join(err, f.Close())
}
