package api

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/audit"
)

// The trees are served as static files, as https://c2sp.org/tlog-tiles describes: the
// directory's log for everyone, and an org's tree for its auditors.

// LogOf selects the tree of one of the chain's incarnations.
type LogOf struct {
	Incarnation int64 `query:"incarnation" minimum:"0" default:"0" doc:"The chain's incarnation. 0: the newest. A chain that was reopened after a loss has more than one." example:"0"`
}

// noteFile is a signed checkpoint.
type noteFile struct {
	ContentType string `header:"Content-Type" doc:"text/plain; charset=utf-8"`
	Body        []byte
}

func orgCheckpoint(ctx context.Context, x *call, in *LogOf) (*noteFile, error) {
	var c audit.StoredCheckpoint
	var err error
	if in.Incarnation == 0 {
		c, err = audit.NewestCheckpoint(ctx, x.tx, x.caller.org)
	} else {
		c, err = audit.LastCheckpoint(ctx, x.tx, x.caller.org, in.Incarnation)
	}
	if errors.Is(err, audit.ErrNoCheckpoint) {
		return nil, notFound("checkpoint", "")
	} else if err != nil {
		return nil, err
	}
	return &noteFile{ContentType: plainText, Body: c.Note}, nil
}

// tileFile is a tile.
type tileFile struct {
	ContentType  string `header:"Content-Type" doc:"application/octet-stream"`
	CacheControl string `header:"Cache-Control" doc:"How long the tile may be kept. A full tile never changes."`
	Body         []byte
}

const (
	plainText = "text/plain; charset=utf-8"
	binary    = "application/octet-stream"
)

func orgTile(ctx context.Context, x *call, in *struct {
	LogOf
	Level string `path:"level" maxLength:"9" doc:"The tile's level. Level 0 has the leaves." example:"0"`
	Index string `path:"index" maxLength:"64" doc:"The tile's index, as tlog-tiles writes it: 067, x001/067, or 067.p/8 for the first 8 hashes." example:"000"`
}) (*tileFile, error) {
	path, ok := audit.ParseTilePath(in.Level + "/" + in.Index)
	if !ok {
		return nil, notFound("tile", "")
	}
	incarnation := in.Incarnation
	if incarnation == 0 {
		c, err := audit.NewestCheckpoint(ctx, x.tx, x.caller.org)
		if errors.Is(err, audit.ErrNoCheckpoint) {
			return nil, notFound("tile", "")
		} else if err != nil {
			return nil, err
		}
		incarnation = c.Incarnation
	}
	data, err := audit.Tile(ctx, x.tx, x.caller.org, incarnation, path)
	if errors.Is(err, audit.ErrBeyond) {
		return nil, notFound("tile", "")
	} else if err != nil {
		return nil, err
	}
	return &tileFile{ContentType: binary, CacheControl: keep("private", path), Body: data}, nil
}

// keep returns how long a tile may be kept. A partial tile never changes either, but is asked
// for only until it is full.
func keep(who string, p audit.TilePath) string {
	if p.Full() {
		return who + ", max-age=31536000, immutable"
	}
	return who + ", max-age=3600"
}

// publicLog limits what the public paths cost: the newest checkpoint is read once in a second,
// and a few tiles at once.
type publicLog struct {
	mu   sync.Mutex
	note []byte
	read time.Time

	tiles chan struct{}
}

// publicTiles is how many tiles are read at once for public requests. More wait.
const publicTiles = 4

func logCheckpoint(s *Server, w http.ResponseWriter, r *http.Request) {
	l := &s.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := s.c.Now(); l.note == nil || now.Before(l.read) || now.Sub(l.read) >= time.Second {
		var note []byte
		err := s.c.DB.Presenting(r.Context(), "log", func(tx pgx.Tx) (err error) { // a transaction without an org
			note, err = audit.DirectoryCheckpoint(r.Context(), tx)
			return err
		})
		switch {
		case errors.Is(err, audit.ErrNoCheckpoint):
			write(w, requestIDOf(r.Context()), &problem{
				Status: http.StatusServiceUnavailable, Code: "signing_unavailable", Message: "The log has no signed checkpoint yet.",
				Fix: "Try again in 10 seconds. The operator must set --signing-key and --witness-key.", Header: http.Header{"Retry-After": {"10"}},
			})
			return
		case err != nil && l.note == nil:
			write(w, requestIDOf(r.Context()), unavailable())
			return
		case err == nil:
			l.note, l.read = note, now
		}
	}
	w.Header().Set("Content-Type", plainText)
	w.Header().Set("Cache-Control", "public, max-age=5")
	_, _ = w.Write(l.note)
}

func logTile(s *Server, w http.ResponseWriter, r *http.Request) {
	path, ok := audit.ParseTilePath(r.PathValue("level") + "/" + r.PathValue("index"))
	if !ok {
		write(w, requestIDOf(r.Context()), noSuchPath())
		return
	}
	select {
	case s.log.tiles <- struct{}{}:
		defer func() { <-s.log.tiles }()
	case <-r.Context().Done():
		write(w, requestIDOf(r.Context()), unavailable())
		return
	}
	var data []byte
	err := s.c.DB.Presenting(r.Context(), "log", func(tx pgx.Tx) (err error) {
		data, err = audit.DirectoryTile(r.Context(), tx, path)
		return err
	})
	switch {
	case errors.Is(err, audit.ErrBeyond):
		write(w, requestIDOf(r.Context()), &problem{Status: http.StatusNotFound, Code: "not_found", Message: "The log has no such tile.", Fix: "Request the tiles of its checkpoint."})
	case err != nil:
		s.c.Log.WarnContext(r.Context(), "reading a tile of the directory", "request", requestIDOf(r.Context()), "err", err)
		write(w, requestIDOf(r.Context()), unavailable())
	default:
		w.Header().Set("Content-Type", binary)
		w.Header().Set("Cache-Control", keep("public", path))
		_, _ = w.Write(data)
	}
}
