package load

import (
	"errors"
	"fmt"

	"golang.org/x/net/http2"
)

// fault is a breach of the rules by the server that ends the connection.
type fault struct {
	code http2.ErrCode
	text string
}

func (f *fault) Error() string { return fmt.Sprintf("%v: %s", f.code, f.text) }

func faultf(code http2.ErrCode, format string, args ...any) error {
	return &fault{code, fmt.Sprintf(format, args...)}
}

// read handles what the server sends, until the connection is closed.
func (c *h2conn) read() {
	cl := c.client
	for first := true; ; first = false {
		f, err := c.in.ReadFrame()
		cl.mu.Lock()
		over := c.closed
		switch {
		case over:
		case err != nil:
			err = c.handleError(err)
		case first && !isSettings(f):
			err = faultf(http2.ErrCodeProtocol, "begins with %v", f.Header())
		default:
			err = c.handle(f)
		}
		cl.mu.Unlock()
		if over {
			return
		}
		if err != nil {
			cl.lose(c, err)
			return
		}
	}
}

func isSettings(f http2.Frame) bool {
	s, is := f.(*http2.SettingsFrame)
	return is && !s.IsAck()
}

// handleError takes an error of ReadFrame. It returns nil if it concerned one
// stream only.
func (c *h2conn) handleError(err error) error {
	var ofStream http2.StreamError
	var ofConn http2.ConnectionError
	switch {
	case errors.As(err, &ofStream):
		s, err := c.stream(ofStream.StreamID)
		if s != nil {
			s.give(malformed, fmt.Errorf("%w: %w", errMalformed, ofStream))
		}
		return err
	case errors.As(err, &ofConn):
		return faultf(http2.ErrCode(ofConn), "%v", c.in.ErrorDetail())
	case errors.Is(err, http2.ErrFrameTooLarge):
		return faultf(http2.ErrCodeFrameSize, "frame longer than %d bytes", frameBytes)
	}
	return err
}

// handle handles one frame. An error ends the connection.
func (c *h2conn) handle(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		s, err := c.stream(f.StreamID)
		if s != nil {
			s.header(f)
		}
		return err
	case *http2.DataFrame:
		return c.data(f)
	case *http2.RSTStreamFrame:
		return c.reset(f)
	case *http2.GoAwayFrame:
		return c.goAway(f)
	case *http2.SettingsFrame:
		return c.settings(f)
	case *http2.WindowUpdateFrame:
		return c.windowUpdate(f)
	case *http2.PingFrame:
		if !f.IsAck() {
			_ = c.out.WritePing(true, f.Data)
		}
	case *http2.PushPromiseFrame:
		return faultf(http2.ErrCodeProtocol, "push, which was declined")
	}
	return nil
}

// stream returns the stream that a frame belongs to, or nil if the frame does
// not matter any more.
func (c *h2conn) stream(id uint32) (*h2stream, error) {
	s := c.streams[id]
	switch {
	case s != nil || c.cancelled[id]:
		return s, nil
	case id%2 == 0 || id >= c.nextID:
		return nil, faultf(http2.ErrCodeProtocol, "stream %d was never opened", id)
	}
	// The server has ended it, reset it, or refused it.
	return nil, faultf(http2.ErrCodeStreamClosed, "more on stream %d after its end", id)
}

func (c *h2conn) data(f *http2.DataFrame) error {
	s, err := c.stream(f.StreamID)
	if err != nil {
		return err
	}
	c.grant(0, &c.taken, f.Length)
	if s != nil {
		s.data(f.Data(), f.StreamEnded())
		if !s.over {
			c.grant(s.id, &s.taken, f.Length)
		}
	}
	return nil
}

// grant gives a window back when half of it has been taken. n bytes more are,
// with padding.
func (c *h2conn) grant(id uint32, taken *uint32, n uint32) {
	if *taken += n; *taken > initialWindow/2 {
		_ = c.out.WriteWindowUpdate(id, *taken)
		*taken = 0
	}
}

func (c *h2conn) reset(f *http2.RSTStreamFrame) error {
	s := c.streams[f.StreamID]
	if s == nil {
		if f.StreamID%2 == 0 || f.StreamID >= c.nextID {
			return faultf(http2.ErrCodeProtocol, "reset of stream %d, which was never opened", f.StreamID)
		}
		return nil // it may have crossed the end of the stream
	}
	s.sent, s.served = true, true
	s.give(streamReset, fmt.Errorf("RST_STREAM of stream %d with %v", s.id, f.ErrCode))
	return nil
}

// goAway takes the last announcement, or an earlier one: more may follow, with
// a lower stream. One with an error announces nothing, it complains.
func (c *h2conn) goAway(f *http2.GoAwayFrame) error {
	if f.LastStreamID > c.lastID {
		return faultf(http2.ErrCodeProtocol, "GOAWAY with last stream %d after %d", f.LastStreamID, c.lastID)
	}
	c.lastID = f.LastStreamID
	how := announced
	if f.ErrCode != http2.ErrCodeNo {
		how = unannounced
	}
	c.client.retire(c, how)
	for id, s := range c.streams {
		if id > c.lastID {
			s.sent, s.served = true, true
			s.give(goAwayRefused, fmt.Errorf("stream %d, and GOAWAY with %v names %d as the last", id, f.ErrCode, c.lastID))
		}
	}
	return nil
}

func (c *h2conn) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	err := f.ForeachSetting(func(s http2.Setting) error {
		if err := s.Valid(); err != nil {
			return faultf(http2.ErrCodeProtocol, "setting %v", s)
		}
		switch s.ID {
		case http2.SettingInitialWindowSize:
			for _, stream := range c.streams {
				stream.window += int64(s.Val) - c.initial
			}
			c.initial = int64(s.Val)
		case http2.SettingMaxConcurrentStreams:
			c.maxStreams = int(min(s.Val, maxStreamID))
		case http2.SettingHeaderTableSize:
			c.hpack.SetMaxDynamicTableSizeLimit(min(s.Val, tableBytes))
		}
		return nil
	})
	if err != nil {
		return err
	}
	_ = c.out.WriteSettingsAck()
	c.client.changed.Broadcast()
	return nil
}

func (c *h2conn) windowUpdate(f *http2.WindowUpdateFrame) error {
	window := &c.window
	if f.StreamID != 0 {
		s := c.streams[f.StreamID]
		if s == nil {
			return nil // over
		}
		window = &s.window
	}
	if *window += int64(f.Increment); *window > maxWindow {
		return faultf(http2.ErrCodeFlowControl, "window of %d bytes", *window)
	}
	c.client.changed.Broadcast()
	return nil
}
