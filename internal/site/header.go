package site

import (
	"net/http"
	"strconv"
)

// GenerationHeader is the header of every answer that tells which generation
// gave it.
const GenerationHeader = "Handoverd-Generation"

// Header returns a handler that sets GenerationHeader and then calls h with
// the same ResponseWriter, so that h loses none of its abilities. A handler
// that sets the header itself wins; Proxy takes care that the servers behind
// it do not.
func Header(gen func() uint64, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(GenerationHeader, strconv.FormatUint(gen(), 10))
		h.ServeHTTP(w, r)
	})
}
