package bench

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-vm/drover/wan/bundle"
	"github.com/drover-vm/drover/wan/frame"
)

// FillSubcommand is the hidden subcommand of the drover binary that fills a
// link through the data path, for the link benchmark.
const FillSubcommand = "lab-wanfill"

// Both ends of a fill know what follows without being told.
const (
	fillToken = "link benchmark v1"
	fillKind  = 1
	// fillMessage is the size of a message, as large as the data path's batches.
	fillMessage = 256 << 10
	// fillPool is how much incompressible data is sent over and over.
	fillPool = 64 * fillMessage
	// fillReport is how often the receiver says what came.
	fillReport = time.Second
)

// fillNote is a line of the receiver's output: what it has received.
type fillNote struct {
	Seconds float64 `json:"seconds"`
	Bytes   int64   `json:"bytes"`
}

// FillMain is the entry of the hidden subcommand: "serve ADDRESS" receives
// until it is interrupted and says every second on standard output, as JSON,
// what has come; "send ADDRESS" sends incompressible data until it is
// interrupted. It returns the exit status.
func FillMain(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	fs := flag.NewFlagSet(FillSubcommand, flag.ContinueOnError)
	fs.SetOutput(io.Discard) // the error says it
	conns := fs.Int("conns", 0, "connections; 0 is the data path's own")
	err := fs.Parse(args)
	switch {
	case err != nil:
	case fs.NArg() == 2 && fs.Arg(0) == "serve":
		err = fillServe(ctx, fs.Arg(1))
	case fs.NArg() == 2 && fs.Arg(0) == "send":
		err = fillSend(ctx, fs.Arg(1), *conns)
	default:
		err = errors.New("want serve ADDRESS or send ADDRESS")
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "drover "+FillSubcommand+":", err)
		return 1
	}
	return 0
}

// fillTLS is a certificate made for this process: the cost of encryption is
// measured, not whom it is for.
func fillTLS() (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: FillSubcommand}, NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	}, nil
}

// notSentBytes is what package wan lets lie in the kernel's send queue.
const notSentBytes = 128 << 10

// fillTune sets what package wan sets for the data path's connections. A kernel
// without an option goes without.
func fillTune(_, _ string, raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "bbr")
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSentBytes)
	})
}

func fillServe(ctx context.Context, address string) error {
	config, err := fillTLS()
	if err != nil {
		return err
	}
	listen := net.ListenConfig{Control: fillTune}
	l, err := listen.Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	b, err := bundle.Accept(bundle.Config{Token: []byte(fillToken)})
	if err != nil {
		return err
	}
	defer b.Close(nil)
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { attach(l, config, b) })
	c, err := b.Accept(ctx)
	if err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	note, began, next := fillNote{}, time.Now(), fillReport
	for {
		m, err := c.Receive(ctx)
		if errors.Is(err, io.EOF) || ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		note.Bytes += int64(len(m.Payload))
		m.Release()
		if s := time.Since(began); s >= next {
			note.Seconds, next = s.Seconds(), next+fillReport
			if err := out.Encode(note); err != nil {
				return err
			}
		}
	}
}

// attach takes connections until the listener is closed.
func attach(l net.Listener, config *tls.Config, b *bundle.Bundle) {
	var group sync.WaitGroup
	defer group.Wait()
	for {
		raw, err := l.Accept()
		if err != nil {
			return
		}
		group.Go(func() {
			conn := tls.Server(raw, config)
			hello, err := frame.ReadHello(conn)
			if err == nil {
				err = b.Attach(conn, hello) // closes what it refuses
			} else {
				_ = conn.Close()
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		})
	}
}

func fillSend(ctx context.Context, address string, conns int) error {
	config, err := fillTLS()
	if err != nil {
		return err
	}
	dialer := tls.Dialer{NetDialer: &net.Dialer{Control: fillTune}, Config: config}
	b, err := bundle.Initiate(ctx, bundle.Config{
		Token: []byte(fillToken), Conns: conns,
		Dial: func(ctx context.Context) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", address) },
	})
	if err != nil {
		return err
	}
	defer b.Close(nil)
	c, err := b.Open(ctx, bundle.Memory, "fill")
	if err != nil {
		return err
	}
	pool := make([]byte, fillPool)
	if _, err := rand.Read(pool); err != nil {
		return err
	}
	for i := 0; ctx.Err() == nil; i++ {
		at := i * fillMessage % fillPool
		if err := c.Send(ctx, fillKind, pool[at:at+fillMessage]); err != nil {
			return err
		}
	}
	return nil
}
