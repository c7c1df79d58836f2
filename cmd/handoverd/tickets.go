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
func (a *app) shareTickets() error {
	if a.srv.TLSConfig == nil {
		return nil
	}
	keys := a.ticketKeys()
	keys.Apply(a.srv.TLSConfig)
	return a.gen.OfferState(ticketState, keys.Marshal)
}

// ticketKeys are the predecessor's, or new ones: they are no reason to fail.
func (a *app) ticketKeys() *server.TicketKeys {
	const lost = "no TLS session of the predecessor can be resumed"
	data, err := a.gen.State(ticketState)
	switch {
	case errors.Is(err, handover.ErrNotFound) && a.gen.Number() == 1:
		return server.NewTicketKeys()
	case err != nil:
		a.log.Warn(lost, "error", err)
		return server.NewTicketKeys()
	}
	keys, err := server.ParseTicketKeys(data)
	if err != nil {
		a.log.Warn(lost, "error", err)
		return server.NewTicketKeys()
	}
	return keys
}
