package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Linux input events, from <linux/input.h>: a 16-byte time, type, code, value.
const (
	inputEventBytes = 24
	eventKey        = 1
	keyPower        = 116
)

// errPowerButton ends waitPowerButton from inside.
var errPowerButton = errors.New("power button pressed")

// waitPowerButton returns nil when the ACPI power button is pressed or ctx is
// done. A machine without a button is waited for until ctx is done.
func waitPowerButton(ctx context.Context, log *slog.Logger) error {
	buttons, err := openInputs()
	if err != nil {
		return err
	}
	if len(buttons) == 0 {
		log.Warn("no input device: the guest cannot be shut down by its power button")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, f := range buttons {
		wg.Go(func() {
			err := readButton(f)
			if ctx.Err() != nil {
				return
			}
			if !errors.Is(err, errPowerButton) {
				log.Warn("input device lost", "device", f.Name(), "err", err)
				return
			}
			cancel(err)
		})
	}
	<-ctx.Done()
	for _, f := range buttons {
		_ = f.Close()
	}
	wg.Wait()
	if errors.Is(context.Cause(ctx), errPowerButton) {
		log.Info("power button pressed")
	}
	return nil
}

// openInputs opens the input devices, the ACPI button among them; the button
// driver may still be registering it when the modules have just been loaded.
func openInputs() ([]*os.File, error) {
	const tries, pause = 20, 50 * time.Millisecond // one second, many times what it takes
	for range tries {
		names, err := filepath.Glob("/dev/input/event*")
		if err != nil {
			return nil, err
		}
		if len(names) == 0 {
			time.Sleep(pause)
			continue
		}
		var files []*os.File
		for _, name := range names {
			f, err := os.Open(name)
			if err != nil {
				return files, fmt.Errorf("open input: %w", err)
			}
			files = append(files, f)
		}
		return files, nil
	}
	return nil, nil
}

func readButton(r io.Reader) error {
	var ev [inputEventBytes]byte
	for {
		if _, err := io.ReadFull(r, ev[:]); err != nil {
			return err
		}
		if binary.NativeEndian.Uint16(ev[16:]) == eventKey &&
			binary.NativeEndian.Uint16(ev[18:]) == keyPower &&
			binary.NativeEndian.Uint32(ev[20:]) == 1 {
			return errPowerButton
		}
	}
}
