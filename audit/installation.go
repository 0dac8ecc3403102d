package audit

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"

	"github.com/jackc/pgx/v5"
)

var logNames = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// LogName returns the name of this installation's logs. Every checkpoint has it, so the first
// call decides: the name is want, or a random one without want. Later calls with another name
// are rejected.
func LogName(ctx context.Context, db LogNamer, want string, random io.Reader) (string, error) {
	name := want
	if name == "" {
		id := make([]byte, 8)
		if _, err := io.ReadFull(random, id); err != nil {
			return "", err
		}
		name = "aid-" + hex.EncodeToString(id)
	}
	if !logNames.MatchString(name) {
		return "", fmt.Errorf("the log's name %q is invalid: it has from 1 to 63 letters, digits, dots, hyphens and underscores, and begins with a letter or digit", name)
	}
	const stored = "SELECT log_name FROM installation"
	var have string
	err := db.QueryRow(ctx, stored).Scan(&have)
	if errors.Is(err, pgx.ErrNoRows) {
		if _, err := db.Exec(ctx, "INSERT INTO installation (log_name) VALUES ($1) ON CONFLICT DO NOTHING", name); err != nil {
			return "", fmt.Errorf("storing the log's name: %w", err)
		}
		err = db.QueryRow(ctx, stored).Scan(&have)
	}
	if err != nil {
		return "", fmt.Errorf("reading the log's name: %w", err)
	}
	if want != "" && want != have {
		return "", fmt.Errorf("the log's name is %s, and it cannot become %s: every checkpoint has it", have, want)
	}
	return have, nil
}

// LogNamer reads and stores the name of the logs, outside of any org.
type LogNamer interface {
	Execer
	RowQuerier
}
