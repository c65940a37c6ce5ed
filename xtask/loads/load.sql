-- Inserts, an index, joins, aggregates, sorting, a recursive query.
drop table if exists words;
create table words(id integer primary key, word text, number integer);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 200000)
  insert into words select i, hex(randomblob(8)), random() % 1000 from n;
create index numbers on words(number, word);
select count(*), max(length(a.word || b.word)) from words a join words b on a.number = b.number and a.id < b.id where a.id < 4000;
select number, count(*), group_concat(substr(word, 1, 2)) from words group by number order by 2 desc, 1 limit 3;
select word from words where word like '%AB%CD%' order by word desc limit 3;
update words set word = lower(word) where id % 3 = 0;
delete from words where number < 0;
