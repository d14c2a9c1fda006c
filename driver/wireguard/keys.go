package wireguard

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/drover-vm/drover"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

const (
	keyFile  = "wireguard.key"
	nextFile = "wireguard.next"
	tempFile = "wireguard.new" // what a crash leaves of it is overwritten
)

// keys is the folder of the private keys.
type keys struct {
	dir       string
	key, next wgtypes.Key // next is zero when there is none
}

// openKeys reads the keys; the first one is made if there is none.
func openKeys(dir string) (*keys, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	k := &keys{dir: dir}
	var err error
	if k.key, err = k.read(keyFile); errors.Is(err, fs.ErrNotExist) {
		k.key, err = k.make(keyFile)
	}
	if err != nil {
		return nil, err
	}
	k.next, err = k.read(nextFile)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return k, err
}

func (k *keys) read(name string) (wgtypes.Key, error) {
	path := filepath.Join(k.dir, name)
	info, err := os.Stat(path)
	if err != nil {
		return wgtypes.Key{}, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return wgtypes.Key{}, drover.Errorf(drover.Refused, "private key "+path,
			"others may read it (mode %#o): chmod 600, and rotate it if they did", info.Mode().Perm())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return wgtypes.Key{}, err
	}
	key, err := wgtypes.ParseKey(strings.TrimSpace(string(text)))
	if err != nil {
		return key, drover.Errorf(drover.Corrupt, "private key "+path, "it is not 32 bytes in base64")
	}
	return key, nil
}

// make makes a key and writes it, durably, in one go.
func (k *keys) make(name string) (wgtypes.Key, error) {
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return key, err
	}
	temp := filepath.Join(k.dir, tempFile)
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return key, err
	}
	_, err = f.WriteString(key.String() + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return key, err
	}
	return key, k.rename(tempFile, name)
}

func (k *keys) rename(from, to string) error {
	if err := os.Rename(filepath.Join(k.dir, from), filepath.Join(k.dir, to)); err != nil {
		return err
	}
	d, err := os.Open(k.dir)
	if err != nil {
		return err
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", k.dir, err)
	}
	return nil
}

// rotate makes the next key unless there is one.
func (k *keys) rotate() error {
	if k.next != (wgtypes.Key{}) {
		return nil
	}
	next, err := k.make(nextFile)
	if err == nil {
		k.next = next
	}
	return err
}

// adopt makes the next key the one in use; the old one is gone then.
func (k *keys) adopt() error {
	if err := k.rename(nextFile, keyFile); err != nil {
		return err
	}
	k.key, k.next = k.next, wgtypes.Key{}
	return nil
}
