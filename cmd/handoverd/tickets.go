package main

import (
	"errors"

	"github.com/handoverd/handoverd/handover"
	"github.com/handoverd/handoverd/server"
)

// ticketState is the name by which the keys of TLS session tickets travel.
const ticketState = "tls-tickets"

// shareTickets has TLS sessions of the predecessor resumed here, and those of
// here by the successor: else every client would shake hands in full after a
// takeover, all at the same time.
func (w *web) shareTickets() error {
	if w.srv.TLSConfig == nil {
		return nil
	}
	keys := w.ticketKeys()
	keys.Apply(w.srv.TLSConfig)
	return w.a.gen.OfferState(ticketState, keys.Marshal)
}

// ticketKeys are the predecessor's, or new ones: they are no reason to fail.
func (w *web) ticketKeys() *server.TicketKeys {
	const lost = "no TLS session of the predecessor can be resumed"
	data, err := w.a.gen.State(ticketState)
	switch {
	case errors.Is(err, handover.ErrNotFound) && w.a.gen.Number() == 1:
		return server.NewTicketKeys()
	case err != nil:
		w.a.log.Warn(lost, "error", err)
		return server.NewTicketKeys()
	}
	keys, err := server.ParseTicketKeys(data)
	if err != nil {
		w.a.log.Warn(lost, "error", err)
		return server.NewTicketKeys()
	}
	return keys
}
