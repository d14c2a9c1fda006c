package bench

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/drover-vm/drover"
)

// sshPort is where a benchmark's own sshd listens, in its node only.
const sshPort = 2222

// sshd is an ssh server in a node, with keys and configuration of its own.
type sshd struct {
	*child
	dir     string // in nodes
	address string
}

// sshdConfig is all that the server is told; nothing of the machine's is read.
const sshdConfig = `Port %d
ListenAddress %s
HostKey %s/host
AuthorizedKeysFile %s/client.pub
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
Compression no
LogLevel ERROR
`

// startSSHD starts an ssh server in a node. Its keys live as long as the lab.
func (w *wanLab) startSSHD(ctx context.Context, name string) (*sshd, error) {
	binary, err := exec.LookPath("sshd")
	if err != nil {
		binary = "/usr/sbin/sshd"
	}
	if _, err := os.Stat(binary); err != nil {
		return nil, drover.Errorf(drover.Unavailable, "ssh", "sshd is not installed: apt-get install openssh-server")
	}
	n, err := w.Node(name)
	if err != nil {
		return nil, err
	}
	folder := "ssh-" + name
	s := &sshd{dir: sharedInNode(folder), address: n.Address}
	if err := w.sshKeys(ctx, folder, n.Address); err != nil {
		return nil, err
	}
	// sshd wants a folder for its unprivileged child, which Debian makes at boot.
	if _, err := w.exec(ctx, name, "mkdir", "-p", "-m", "755", "/run/sshd"); err != nil {
		return nil, err
	}
	if s.child, err = w.start(ctx, name, binary, "-D", "-e", "-f", s.dir+"/sshd_config"); err != nil {
		return nil, err
	}
	err = s.await(ctx, tunnelReady, func(ctx context.Context) error {
		conn, err := w.Dial(ctx, name, "tcp", net.JoinHostPort(n.Address, strconv.Itoa(sshPort)))
		if err != nil {
			return err
		}
		return conn.Close()
	})
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// sshKeys makes the folder with both sides' keys and the server's file.
func (w *wanLab) sshKeys(ctx context.Context, folder, address string) error {
	here, there := w.shared(folder), sharedInNode(folder)
	if _, err := os.Stat(filepath.Join(here, "sshd_config")); err == nil {
		return nil
	}
	if err := os.MkdirAll(here, 0o700); err != nil {
		return err
	}
	for _, key := range []string{"host", "client"} {
		cmd := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", filepath.Join(here, key))
		if _, err := output(cmd); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(here, "sshd_config"), fmt.Appendf(nil, sshdConfig, sshPort, address, there, there), 0o600)
}

// command is an ssh client's command line up to its options; the address
// follows.
func (s *sshd) command(options ...string) []string {
	return append([]string{
		"ssh", "-F", "none", "-i", s.dir + "/client", "-p", strconv.Itoa(sshPort),
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
		"-o", "BatchMode=yes", "-o", "Compression=no", "-o", "ConnectTimeout=" + strconv.Itoa(int(sshConnect/time.Second)),
	}, options...)
}

// sshConnect bounds a connection, which takes some round trips.
const sshConnect = 10 * time.Second
