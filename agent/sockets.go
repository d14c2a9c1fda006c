package agent

import (
	"os"
	"path/filepath"

	"github.com/drover-vm/drover"
)

// sockets are the folders in which a move's unix sockets lie. Names are short,
// since a socket's path may have 107 bytes.
type sockets struct {
	dir      string
	uid, gid int
}

// memory and disk are the paths of a move's sockets.
func (s sockets) memory(move string) string { return filepath.Join(s.folder(move), "m") }
func (s sockets) disk(move string) string   { return filepath.Join(s.folder(move), "d") }
func (s sockets) folder(move string) string { return filepath.Join(s.dir, socketFolder, move) }

// socketFolder is where all folders are, below the run folder.
const socketFolder = "s"

// make makes a move's folder anew. Only the hypervisor's user may enter it:
// who reaches a receiving hypervisor's socket could feed it a guest.
func (s sockets) make(move string) error {
	const op = "make socket folder"
	if err := s.remove(move); err != nil {
		return err
	}
	// Search permission on the way down is all that others get.
	path := s.folder(move)
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return drover.E(drover.Internal, op, err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return drover.E(drover.Internal, op, err)
	}
	if s.uid == 0 && s.gid == 0 {
		return nil
	}
	return drover.E(drover.Internal, op, os.Chown(path, s.uid, s.gid))
}

// folderAt makes a folder for sockets that outlive a move; one that is there is fine.
func (s sockets) folderAt(path string) error {
	const op = "make socket folder"
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return drover.E(drover.Internal, op, err)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return drover.E(drover.Internal, op, err)
	}
	return s.give(path)
}

// give makes the hypervisor's user the owner of a socket that it connects to.
func (s sockets) give(path string) error {
	if s.uid == 0 && s.gid == 0 {
		return nil
	}
	return drover.E(drover.Internal, "make socket", os.Chown(path, s.uid, s.gid))
}

// remove takes the folder away; missing is fine.
func (s sockets) remove(move string) error {
	return drover.E(drover.Internal, "remove socket folder", os.RemoveAll(s.folder(move)))
}

// sweep removes what an earlier process left.
func (s sockets) sweep() error {
	return drover.E(drover.Internal, "sweep socket folders", os.RemoveAll(filepath.Join(s.dir, socketFolder)))
}
