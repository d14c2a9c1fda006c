package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/api"
	"github.com/drover-vm/drover/api/droverv1"
)

const (
	// watchPatience is how long a watch outlives its server: a restart takes
	// seconds, an upgrade a minute, and moves outlive a cut of the WAN of five.
	watchPatience = 6 * time.Minute
	// watchRetry is the wait between two attempts to reach the server again.
	watchRetry = time.Second
)

// watch follows a move to its end and shows the result. An interrupt leaves
// the move running and says how to go on.
func (a *app) watch(ctx context.Context, cl *api.Client, name string) error {
	m, err := a.follow(ctx, cl, name)
	if err != nil {
		return err
	}
	if err := a.moveResult(m); err != nil {
		return err
	}
	return outcome(m)
}

// follow shows a move's progress until it is final, and returns it. It tries
// to reach a server that went away again for watchPatience.
func (a *app) follow(ctx context.Context, cl *api.Client, name string) (drover.Move, error) {
	line := a.newProgressLine()
	defer line.end()
	heard := time.Now()
	for {
		m, any, err := a.followOnce(ctx, cl, name, line)
		if any {
			heard = time.Now()
		}
		switch {
		case ctx.Err() != nil:
			return m, drover.Errorf(drover.Canceled, "", "interrupted; move %s goes on; %s", name, howToGoOn(name))
		case err == nil && m.State.Final():
			return m, nil
		case err == nil:
			err = drover.Errorf(drover.Unavailable, "watch move "+name, "the server ended the stream")
		case !drover.KindOf(err).Retryable():
			return m, err
		}
		if time.Since(heard) > watchPatience {
			return m, fmt.Errorf("%w (the move may go on; %s)", err, howToGoOn(name))
		}
		line.say("the server does not answer, trying again: " + err.Error())
		select {
		case <-time.After(watchRetry):
		case <-ctx.Done():
		}
	}
}

// followOnce reads one stream to its end; any says whether it brought
// anything.
func (a *app) followOnce(ctx context.Context, cl *api.Client, name string, line *progressLine) (m drover.Move, any bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	moves := make(chan drover.Move)
	ended := make(chan error, 1)
	go func() {
		ended <- receive(ctx, cl, name, moves)
		close(moves)
	}()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	defer func() {
		// The stream ends with its context; what it still brings is dropped.
		cancel()
		for range moves {
		}
	}()
	for {
		select {
		case v, more := <-moves:
			if !more {
				return m, any, <-ended
			}
			m, any = v, true
			line.show(m)
		case <-tick.C:
			if any {
				line.again()
			}
		}
	}
}

// receive sends what the stream brings until it ends.
func receive(ctx context.Context, cl *api.Client, name string, moves chan<- drover.Move) error {
	stream, err := cl.WatchMove(ctx, &droverv1.WatchMoveRequest{Name: name})
	if err != nil {
		return err
	}
	for stream.Receive() {
		select {
		case moves <- api.MoveFromProto(stream.Msg().GetMove()):
		case <-ctx.Done():
		}
	}
	return errors.Join(stream.Err(), stream.Close())
}
