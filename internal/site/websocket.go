package site

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"
)

const (
	maxMessage = 1 << 20
	// sendPatience is how long a client may take to receive its echo.
	sendPatience = 30 * time.Second
)

// webSocket sends each message back. When the drain begins it closes the
// connection with 1001 Going Away.
func (s *site) webSocket(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // Accept has answered
	}
	defer c.CloseNow()
	c.SetReadLimit(maxMessage)

	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	wg.Go(func() { s.goAway(ctx, c) })
	for echoMessage(ctx, c) == nil {
	}
}

// goAway closes c when the drain begins. It returns when that is done, or
// when ctx has ended.
func (s *site) goAway(ctx context.Context, c *websocket.Conn) {
	select {
	case <-s.cfg.Draining:
		// The reader of c sees the other side's answer, if there is one.
		_ = c.Close(websocket.StatusGoingAway,
			fmt.Sprintf("generation %d is draining, connect again", s.cfg.Generation()))
	case <-ctx.Done():
	}
}

func echoMessage(ctx context.Context, c *websocket.Conn) error {
	kind, b, err := c.Read(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, sendPatience)
	defer cancel()
	return c.Write(ctx, kind, b)
}
